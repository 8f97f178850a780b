"""Stage `teacher`: SASRec, whose item table is the ID vectors of section 2.1 of SIGMA."""
