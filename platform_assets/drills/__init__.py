"""Drills: what goes wrong without the guard, and what the guard does; each on real data.

A drill is a function from a `Scene` (a home of its own, to be thrown away) to a `DrillReport`.
It plays the same situation on plain Dagster and on Signalbox, with both really at work, and says
what came of it. To add one: write the function in a module of its own, and add it to `DRILLS` in
`registry.py`; `signalbox drill NAME` finds it there, and gives it its home, JSON and HTML.
"""
