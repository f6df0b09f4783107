"""The main job on real data, played from landing zone to champion."""
