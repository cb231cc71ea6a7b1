// lora: see mod.rs for the formula.
