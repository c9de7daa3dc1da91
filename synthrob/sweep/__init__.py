"Many experiments, and one report"
