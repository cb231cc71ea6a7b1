// attention: see mod.rs for the formula.
