// pool: see mod.rs for the formula.
