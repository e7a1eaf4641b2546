"""Tables, plots, HTML reports and Perfetto traces from results."""
