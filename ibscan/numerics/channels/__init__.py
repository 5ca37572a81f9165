"""Information through Gaussian noise: mixtures, control variates, bounds."""
