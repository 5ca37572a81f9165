"""Turn a request into a result: find the inputs, build the networks, run the measures, write the file."""
