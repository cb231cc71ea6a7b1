// cosine_pairs: see mod.rs for the formula.
