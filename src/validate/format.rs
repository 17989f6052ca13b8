//! The formats of files, by the names they go under.

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Apache Parquet.
    Parquet,
    /// Arrow IPC stream.
    Arrow,
    /// Text with a header line, its fields parted by commas, semicolons, tabs or bars, in UTF-8, UTF-16 or GB18030.
    Csv,
}

impl Format {
    /// By media type; parameters after `;` are ignored.
    pub fn from_media_type(media_type: &str) -> Option<Self> {
        match media_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
            "application/vnd.apache.parquet" => Some(Self::Parquet),
            "application/vnd.apache.arrow.stream" => Some(Self::Arrow),
            "text/csv" => Some(Self::Csv),
            _ => None,
        }
    }

    /// By the end of a file's name.
    pub fn from_file_name(name: &str) -> Option<Self> {
        match name.rsplit('.').next()?.to_ascii_lowercase().as_str() {
            "parquet" => Some(Self::Parquet),
            "arrow" | "arrows" | "ipc" => Some(Self::Arrow),
            "csv" | "tsv" | "txt" => Some(Self::Csv),
            _ => None,
        }
    }

    /// Its media type.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Parquet => "application/vnd.apache.parquet",
            Self::Arrow => "application/vnd.apache.arrow.stream",
            Self::Csv => "text/csv",
        }
    }
}
