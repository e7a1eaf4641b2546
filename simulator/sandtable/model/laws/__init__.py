"""One law per file: a device, its software and a demand in, seconds out. No clock, no file is read here."""
