// elementwise: see mod.rs for the formula.
