"""What is in the library: machines, devices, prices as pandas frames."""

import sandtable

machine = sandtable.load_machine("laptop_pcie4", {"storage": "samsung_990_pro_2tb"})
print(machine.title, "with", machine.storage.title)
print(sandtable.devices().groupby("kind").size().to_dict())
prices = sandtable.prices()
print(prices[prices["accelerator"].str.contains("H100")].groupby("provider").size().to_dict())
