"""The record: what a run leaves in its folder, and reading it back. Imported by report, run and all above.

run.json             what was run, when and where (facts.RunFacts)
history.parquet      every request (history)
timeline.csv         what the probes read (simulation.target.probes)
faults.json          the faults that were done, if any (simulation.model.events.Interval)
fuzz.json            what hostile requests did, if there were any (simulation.model.hostile)
final/               what the stores held at the end (state)
manifest.json        digests of these files (manifest)
engine.log           what the engine wrote, if the run started it
summary.json         the verdict, the checks and the numbers (simulation.verdict)
plots/, report.html  made of all these (simulation.report)
"""
