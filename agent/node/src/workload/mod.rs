//! (being built)
mod disk;
mod order;
mod rows;
mod tensorboard;
