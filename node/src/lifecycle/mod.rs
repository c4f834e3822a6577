//! How a process lives: runtimes, the root of all tasks, signals, the leash, the ready file, the wall clock, its health.

pub mod clock;
pub mod descriptors;
pub mod file_stamp;
pub mod health;
pub mod leash;
pub mod ready_file;
pub mod runtimes;
pub mod shutdown;
pub mod tasks;
