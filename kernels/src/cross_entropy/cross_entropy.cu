// cross_entropy: see mod.rs for the formula.
