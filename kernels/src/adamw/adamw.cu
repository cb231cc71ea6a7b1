// adamw: see mod.rs for the formula.
