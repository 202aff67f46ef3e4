"""What a run measured: functions of its history, its timeline and its final state. Imported by all who show
them."""
