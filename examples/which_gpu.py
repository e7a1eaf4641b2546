"""Which machine trains a 500M model for the least money?"""

import sandtable

machines = ["aws_p4d_24xlarge", "aws_p4de_24xlarge", "aws_p5_48xlarge"]
found = sandtable.study("slm_paper_h100", {"machine": machines, "micro_batch": [8, 16]})
print(found.to_frame()[["tokens_per_s", "usd_per_mtok"]].sort_values("usd_per_mtok").round(4).head(3))
