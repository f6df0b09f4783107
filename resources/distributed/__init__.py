"""One training in several processes, by PyTorch's own elastic agents.

    step of a run ─ launching.py, watching.py
      └─ supervisor.py             keeps the rendezvous, one child a place
           └─ agent.py             torchrun
                └─ rank.py         the trainer's own code

Whoever's parent dies, dies. Nothing of this loads PyTorch before a training needs it.
"""
