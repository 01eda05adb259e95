//! Runs a story under many schedules.
