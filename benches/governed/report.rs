//! What was measured, for people and for machines.

use std::{fs, path::PathBuf};

use serde::Serialize;
use serde_json::{Value, json};

/// A question's medians, in milliseconds.
#[derive(Serialize)]
pub struct Measured {
    /// The question.
    pub name: String,
    /// Rows of the governed answer.
    pub rows: usize,
    /// The hub's engine.
    #[serde(rename = "governed_ms")]
    pub governed: f64,
    /// The engine alone.
    #[serde(rename = "ungoverned_ms")]
    pub ungoverned: f64,
    /// The engine alone, in one partition.
    #[serde(rename = "ungoverned_in_one_partition_ms")]
    pub in_one_partition: f64,
    /// The hub, with policy and log.
    #[serde(rename = "end_to_end_ms")]
    pub end_to_end: f64,
}

/// A small question's medians, in milliseconds: whole, and step by step. The ungoverned side runs in one partition.
#[derive(Serialize)]
pub struct Planning {
    /// The question.
    pub name: String,
    /// The hub's engine.
    #[serde(rename = "governed_ms")]
    pub governed: f64,
    /// The engine alone.
    #[serde(rename = "ungoverned_ms")]
    pub ungoverned: f64,
    /// Steps of the hub's engine that can be told apart.
    #[serde(rename = "governed_bind_guard_optimise_ms")]
    pub bind_guard_optimise: [f64; 3],
    /// Steps of the engine alone.
    #[serde(rename = "ungoverned_bind_optimise_plan_ms")]
    pub bind_optimise_plan: [f64; 3],
}

/// What `SELECT 1` takes, in milliseconds.
#[derive(Serialize)]
pub struct Log {
    /// In the hub's engine.
    #[serde(rename = "governed_ms")]
    pub governed: f64,
    /// With policy and log.
    #[serde(rename = "end_to_end_ms")]
    pub end_to_end: f64,
}

impl Measured {
    fn ratio(&self) -> f64 {
        self.governed / self.ungoverned
    }

    fn ratio_in_one(&self) -> f64 {
        self.governed / self.in_one_partition
    }

    fn ratio_end_to_end(&self) -> f64 {
        self.end_to_end / self.ungoverned
    }
}

/// One line a question, and what they come to.
pub fn questions(title: &str, measured: &[Measured]) {
    println!("\n{title}");
    println!(
        "{:32} {:>9} {:>10} {:>6} {:>11} {:>6} {:>10} {:>8}",
        "", "governed", "ungoverned", "ratio", "1 partition", "ratio", "end to end", "rows"
    );
    for line in measured {
        println!(
            "{:32} {:>9.2} {:>10.2} {:>6.2} {:>11.2} {:>6.2} {:>10.2} {:>8}",
            line.name,
            line.governed,
            line.ungoverned,
            line.ratio(),
            line.in_one_partition,
            line.ratio_in_one(),
            line.end_to_end,
            line.rows
        );
    }
    let all = |ratio: fn(&Measured) -> f64| measured.iter().map(ratio).collect::<Vec<_>>();
    let (ratios, in_one) = (all(Measured::ratio), all(Measured::ratio_in_one));
    println!("{:32} {:>27.2} {:>18.2}", "geometric mean", geometric_mean(&ratios), geometric_mean(&in_one));
    println!("{:32} {:>27.2} {:>18.2}", "largest", largest(&ratios), largest(&in_one));
}

/// What small questions cost beyond their rows.
pub fn planning(measured: &[Planning]) {
    println!("\nPlanning: small questions from text to rows, both sides in one partition");
    for line in measured {
        let [bind, guard, optimise] = line.bind_guard_optimise;
        println!("{}", line.name);
        println!("  governed   {:>7.2}   bind {bind:.2}, guard {guard:.2}, optimise {optimise:.2}", line.governed);
        let [bind, optimise, plan] = line.bind_optimise_plan;
        println!("  ungoverned {:>7.2}   bind {bind:.2}, optimise {optimise:.2}, plan {plan:.2}", line.ungoverned);
        println!("  difference {:>7.2}", line.governed - line.ungoverned);
    }
}

/// The share of policy and log in every question.
pub fn log(measured: &Log) {
    println!("\nPolicy and log: SELECT 1");
    println!("  governed   {:>7.2}", measured.governed);
    println!("  end to end {:>7.2}", measured.end_to_end);
    println!("  difference {:>7.2}", measured.end_to_end - measured.governed);
}

/// What questions come to.
pub fn summary(measured: &[Measured]) -> Value {
    let of = |ratio: fn(&Measured) -> f64| {
        let ratios: Vec<f64> = measured.iter().map(ratio).collect();
        json!({"geometric_mean": geometric_mean(&ratios), "largest": largest(&ratios), "each": ratios})
    };
    json!({
        "governed_to_ungoverned": of(Measured::ratio),
        "governed_to_ungoverned_in_one_partition": of(Measured::ratio_in_one),
        "end_to_end_to_ungoverned": of(Measured::ratio_end_to_end),
    })
}

/// Where it was measured.
pub fn machine(cores: usize) -> Value {
    let line = |file: &str, key: &str| {
        let text = fs::read_to_string(file).ok()?;
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    json!({
        "cores": cores,
        "processor": line("/proc/cpuinfo", "model name"),
        "memory": line("/proc/meminfo", "MemTotal"),
        "system": std::env::consts::OS,
        "architecture": std::env::consts::ARCH,
    })
}

/// Writes the one file for machines.
pub fn write(report: &Value) {
    let file = std::env::var_os("GRIDHUB_BENCH_JSON")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/governed.json"), PathBuf::from);
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).unwrap();
    }
    fs::write(&file, serde_json::to_string_pretty(report).unwrap() + "\n").unwrap();
    println!("\nwritten to {}", file.display());
}

fn geometric_mean(ratios: &[f64]) -> f64 {
    let logarithms: f64 = ratios.iter().map(|ratio| ratio.ln()).sum();
    (logarithms / ratios.len() as f64).exp()
}

fn largest(ratios: &[f64]) -> f64 {
    ratios.iter().copied().fold(f64::MIN, f64::max)
}
