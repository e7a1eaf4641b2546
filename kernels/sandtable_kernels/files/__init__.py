"""Reading weights: direct I/O, the neuron store on disk, element types. No arithmetic on what was read."""
