"""The judgement of a run: its record goes in, verdict and numbers come out.

Pure, but for final_state, which reads the stores.
"""
