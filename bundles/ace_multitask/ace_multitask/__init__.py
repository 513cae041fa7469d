"""One network for tissues and lesions from data sets that label one or the other (Roulet et al., MIDL 2019)."""
