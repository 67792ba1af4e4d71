"""Settings of Language-Model-SAEs (lm-saes 2.0, now llamascopium), read as parameters of ours; none of its code is used."""
