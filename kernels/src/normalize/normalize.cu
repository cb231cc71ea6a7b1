// normalize: see mod.rs for the formula.
