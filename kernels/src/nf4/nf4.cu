// nf4: see mod.rs for the formula.
