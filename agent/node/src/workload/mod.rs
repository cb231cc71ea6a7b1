//! (being built)
mod checkpoint;
pub mod compare;
mod disk;
pub mod identity;
mod log;
mod order;
pub mod results;
mod rows;
mod score;
mod tasks;
mod tensorboard;
