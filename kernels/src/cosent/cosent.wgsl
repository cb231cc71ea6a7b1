// cosent: see mod.rs for the formula.
