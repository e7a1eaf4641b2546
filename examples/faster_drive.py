"""Is another drive worth it for a model that lives in flash?"""

import sandtable

change = sandtable.whatif("flash_laptop", {"machine.storage": "crucial_t700_2tb"})
frame = change.to_frame()
print(frame.loc[["latency_s.mean", "io_s.mean", "tokens_per_s"], ["before", "after", "change_frac"]].round(3))
