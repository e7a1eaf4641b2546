"""What does a million tokens of training cost, and what changes with another micro-batch?"""

import sandtable

for micro_batch in (4, 8, 16):
    found = sandtable.simulate("slm_100m_a100", {"parameters.micro_batch": micro_batch})
    print(micro_batch, f"{found['tokens_per_s'].value:,.0f} tokens/s", f"{found['usd_per_mtok'].value:.4f} USD")
