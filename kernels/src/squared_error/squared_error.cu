// squared_error: see mod.rs for the formula.
