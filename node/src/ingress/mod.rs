//! The front doors.

pub mod derp;
