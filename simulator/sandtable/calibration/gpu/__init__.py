"""GPUs: recordings of what was timed, their data sheets, and the machine that is fitted to them."""
