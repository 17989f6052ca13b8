//! What was measured, for people and for machines.

use std::{fs, path::PathBuf};

use serde::Serialize;
use serde_json::{Value, json};

use crate::uploads::{Bulk, Hashing, Small};

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

/// A protected question's medians, in milliseconds.
#[derive(Serialize)]
pub struct Protected {
    /// The question.
    pub name: String,
    /// Rows of the protected answer.
    pub rows: usize,
    /// The engine alone, which counts the people of each group beside.
    #[serde(rename = "plain_ms")]
    pub plain: f64,
    /// The hub's engine, when nothing was released before.
    #[serde(rename = "first_ms")]
    pub first: f64,
    /// The hub's engine, when the same is asked again.
    #[serde(rename = "repeated_ms")]
    pub again: f64,
}

/// What a way to sketch sets takes: a time for each thing, the median over blocks of many, in nanoseconds.
#[derive(Serialize)]
pub struct Sketched {
    /// What it is called.
    pub name: &'static str,
    /// How large a sketch is.
    pub bytes: usize,
    /// Putting in a tag.
    #[serde(rename = "insertion_ns")]
    pub insertion: f64,
    /// Adding one sketch to another.
    #[serde(rename = "merge_ns")]
    pub merge: f64,
    /// Whether two sets are near, by the number of their differences.
    #[serde(rename = "comparisons_ns")]
    pub comparisons: Vec<(usize, f64)>,
    /// Reading off all differences, so many, where that can be asked for.
    #[serde(rename = "reading_ns")]
    pub reading: Option<(usize, f64)>,
    /// Pairs of sets that were looked at for each number of differences.
    pub trials: usize,
    /// Of how many of these the differences were not told rightly, from 1 difference on.
    pub wrong: Vec<usize>,
}

impl Protected {
    fn ratio_first(&self) -> f64 {
        self.first / self.plain
    }

    fn ratio_again(&self) -> f64 {
        self.again / self.plain
    }
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

/// One line a protected question, and what they come to.
pub fn protected(title: &str, measured: &[Protected]) {
    println!("\n{title}");
    println!("{:36} {:>9} {:>9} {:>6} {:>9} {:>6} {:>8}", "", "plain", "first", "ratio", "repeated", "ratio", "rows");
    for line in measured {
        println!(
            "{:36} {:>9.2} {:>9.2} {:>6.2} {:>9.2} {:>6.2} {:>8}",
            line.name,
            line.plain,
            line.first,
            line.ratio_first(),
            line.again,
            line.ratio_again(),
            line.rows
        );
    }
    let all = |ratio: fn(&Protected) -> f64| measured.iter().map(ratio).collect::<Vec<_>>();
    let (first, again) = (all(Protected::ratio_first), all(Protected::ratio_again));
    println!("{:36} {:>26.2} {:>16.2}", "geometric mean", geometric_mean(&first), geometric_mean(&again));
    println!("{:36} {:>26.2} {:>16.2}", "largest", largest(&first), largest(&again));
}

/// What a hub does beside when it releases the first number of a dataset.
pub fn counting(took: f64) {
    println!("{:36} {took:>9.2}", "counting the subjects, once");
}

/// What protected questions come to.
pub fn summary_of_protected(measured: &[Protected]) -> Value {
    let of = |ratio: fn(&Protected) -> f64| {
        let ratios: Vec<f64> = measured.iter().map(ratio).collect();
        json!({"geometric_mean": geometric_mean(&ratios), "largest": largest(&ratios), "each": ratios})
    };
    json!({"first_to_plain": of(Protected::ratio_first), "repeated_to_plain": of(Protected::ratio_again)})
}

/// One column a way to sketch sets. All have been measured at the same numbers of differences.
pub fn sketches(measured: &[Sketched]) {
    let line = |name: &str, cell: &dyn Fn(&Sketched) -> String| {
        let cells: String = measured.iter().map(|sketched| format!(" {:>12}", cell(sketched))).collect();
        println!("{name:36}{cells}");
    };
    let Some(first) = measured.first() else { return };
    println!("\nSketches of sets, in nanoseconds");
    line("", &|sketched| sketched.name.to_owned());
    line("bytes", &|sketched| sketched.bytes.to_string());
    line("insertion", &|sketched| format!("{:.1}", sketched.insertion));
    line("merge", &|sketched| format!("{:.1}", sketched.merge));
    for (at, (differences, _)) in first.comparisons.iter().enumerate() {
        line(&format!("comparison at {differences}"), &|sketched| format!("{:.0}", sketched.comparisons[at].1));
    }
    if let Some((differences, _)) = measured.iter().find_map(|sketched| sketched.reading) {
        let took =
            |sketched: &Sketched| sketched.reading.map_or_else(|| "-".to_owned(), |(_, took)| format!("{took:.0}"));
        line(&format!("reading all of {differences}"), &took);
    }
    println!("Told wrongly, of {} pairs", first.trials);
    for at in 0..first.wrong.len() {
        line(&format!("at {}", at + 1), &|sketched| sketched.wrong[at].to_string());
    }
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

/// Prints what a large upload takes.
pub fn bulk(bulk: &Bulk) {
    let Bulk { rows, bytes, plain, hub, resent, peak_memory } = bulk;
    let a_second = |seconds: f64| *rows as f64 / seconds / 1e6;
    println!("\nOne upload of {rows} rows, {} MB", bytes >> 20);
    println!("  DataFusion to Delta alone  {plain:8.2} s  {:6.2} M rows/s", a_second(*plain));
    println!("  the hub                    {hub:8.2} s  {:6.2} M rows/s  ratio {:.2}", a_second(*hub), hub / plain);
    println!(
        "  the hub, resent            {resent:8.2} s  {:6.2} M rows/s  ratio {:.2}",
        a_second(*resent),
        resent / plain
    );
    println!("  most memory so far         {:8} MB", peak_memory >> 20);
}

/// Prints how many pseudonyms a core makes.
pub fn hashing(hashing: &Hashing) {
    let Hashing { bare, distinct, tenfold } = hashing;
    println!("\nPseudonyms of one core, millions a second");
    println!(
        "  bare HMAC loop {:.2}; distinct identifiers {:.2} ({:.2}); each ten times {:.2} ({:.2})",
        bare / 1e6,
        distinct / 1e6,
        distinct / bare,
        tenfold / 1e6,
        tenfold / bare
    );
}

/// Prints how long small pushes take.
pub fn small(measured: &[Small]) {
    println!("\nSmall pushes over HTTP, milliseconds from the first byte sent");
    println!("  uploaders  receipt p50    p99  visible p50    p99  pushes/s  commits/s");
    for Small { uploaders, receipt, visible, pushes_a_second, commits_a_second, .. } in measured {
        println!(
            "  {uploaders:9}  {:11.1} {:6.1}  {:11.1} {:6.1}  {pushes_a_second:8.1}  {commits_a_second:9.1}",
            receipt[0], receipt[1], visible[0], visible[1]
        );
    }
}
