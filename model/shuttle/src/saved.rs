//! Schedules in files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// A schedule, and which story it is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// The scenario's name.
    pub scenario: String,
    /// The design's name.
    pub design: String,
    /// What the checkers said.
    pub verdict: String,
    /// The seed of the exploration that found it.
    pub seed: u64,
    /// Who ran, turn by turn: see `explore::Choices`.
    pub schedule: String,
}

impl Saved {
    /// What a file of this design is called, without its ending.
    pub fn stem(scenario: &str, design: &str) -> String {
        format!("{scenario}-{design}")
    }

    /// Writes it into `folder`, which is made if need be, and says where it is.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&self, folder: &Path) -> io::Result<PathBuf> {
        fs::create_dir_all(folder)?;
        let path = folder.join(format!("{}.json", Self::stem(&self.scenario, &self.design)));
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        fs::write(&path, text)?;
        Ok(path)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// The system's, or one that says what the file lacks.
    pub fn read(path: &Path) -> io::Result<Self> {
        let text = fs::read_to_string(path)?;
        Ok(serde_json::from_str(&text)?)
    }
}
