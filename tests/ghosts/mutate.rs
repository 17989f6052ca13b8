//! Differences between worlds that the caller must not notice. Each is made at random and kept only if the
//! toy model says that what the caller sees stayed as it was.
#![allow(clippy::ptr_arg, reason = "all steps have one form, whether or not they add batches")]

use std::collections::{HashMap, HashSet};

use rand::{
    Rng,
    rngs::StdRng,
    seq::{IndexedRandom, SliceRandom},
};

use super::world::{AGENCIES, Batch, Contents, Exposure, Grant, Row, Table, World, neighbour};

/// The same world to its caller.
#[derive(Debug, Clone)]
pub struct Other {
    pub contents: Contents,
    /// What is different, in words.
    pub steps: Vec<String>,
    /// Of which kinds that is.
    pub kinds: Vec<&'static str>,
}

/// A kind of difference: changes a table's batches, and says how.
pub type Step = fn(&Table, &mut Vec<Batch>, &mut Fresh<'_>) -> Option<String>;

/// The kinds of differences, by name.
pub const STEPS: [(&str, Step); 10] = [
    ("unseen cells", unseen_cells),
    ("within buckets", within_buckets),
    ("ghosts gone", ghosts_gone),
    ("ghosts changed", ghosts_changed),
    ("ghosts added", ghosts_added),
    ("older added", older_added),
    ("laid otherwise", laid_otherwise),
    ("exchanged", exchanged),
    ("from another source", from_another_source),
    ("unseen table", unseen_table),
];

/// Where new rows and chances come from.
pub struct Fresh<'a> {
    rng: &'a mut StdRng,
    highest: u32,
}

impl Fresh<'_> {
    fn number(&mut self) -> u32 {
        self.highest += 1;
        self.highest
    }
}

/// A world that differs from `before` where the caller cannot see.
pub fn other(world: &World, before: &Contents, rng: &mut StdRng) -> Other {
    let mut other = Other { contents: before.clone(), steps: Vec::new(), kinds: Vec::new() };
    let mut fresh = Fresh { highest: before.highest(), rng };
    // Where there is not a row yet, most steps do nothing.
    for _ in 0..20 {
        if !other.steps.is_empty() {
            break;
        }
        for (at, table) in world.tables.iter().enumerate() {
            for (kind, step) in STEPS {
                // Few tables are not there at all, and little can be done to them.
                if table.grant != Grant::Nothing && fresh.rng.random_bool(0.5) {
                    continue;
                }
                let mut batches = other.contents.0[at].clone();
                let Some(said) = step(table, &mut batches, &mut fresh) else { continue };
                if batches != other.contents.0[at] && looks_the_same(table, &before.0[at], &batches) {
                    other.contents.0[at] = batches;
                    other.steps.push(format!("{}: {said}", table.full_name()));
                    other.kinds.push(kind);
                }
            }
        }
    }
    other
}

/// Whether the caller sees the same of both.
pub fn looks_the_same(table: &Table, one: &[Batch], other: &[Batch]) -> bool {
    table.grant == Grant::Nothing || (table.is_decided(other) && table.shown(one) == table.shown(other))
}

/// Whether protected statistics rest on the same too, so that even they must be equal.
pub fn is_strict(world: &World, one: &Contents, other: &Contents) -> bool {
    let pairs = world.tables.iter().zip(one.0.iter().zip(&other.0));
    // Rows that are about nobody and have no key are told apart by all they say, and by who sent them.
    let same = |table: &Table, one: &[Batch], other: &[Batch]| match table.subject.or(table.key) {
        Some(_) => table.measured(one) == table.measured(other),
        None => format!("{one:?}") == format!("{other:?}"),
    };
    pairs.into_iter().all(|(table, (one, other))| same(table, one, other))
}

// ------------------------------------------------------------------------------------- steps

/// Other values in a hidden or sealed field.
fn unseen_cells(table: &Table, batches: &mut Vec<Batch>, fresh: &mut Fresh<'_>) -> Option<String> {
    let unseen = fields_like(table, fresh, |exposure| exposure <= Exposure::Aggregate);
    let at = *unseen.choose(fresh.rng)?;
    let field = &table.fields[at];
    let share = *[0.3, 1.0].choose(fresh.rng)?;
    let before = batches.clone();
    rewrite(batches, |row| {
        if fresh.rng.random_bool(share) {
            row.cells[at] = field.any(fresh.rng);
        }
    });
    only_unseen(table, &before, batches);
    let deciding = if table.is_structural(at) { " and decides on rows" } else { "" };
    Some(format!("other values in `{}`, which is {:?}{deciding}", field.name, field.exposure))
}

/// Other values under a coarse form, in the same bucket.
fn within_buckets(table: &Table, batches: &mut Vec<Batch>, fresh: &mut Fresh<'_>) -> Option<String> {
    let coarse = fields_like(table, fresh, |exposure| exposure == Exposure::Generalised);
    let at = *coarse.choose(fresh.rng)?;
    let field = &table.fields[at];
    let how = field.coarse?;
    let before = batches.clone();
    rewrite(batches, |row| {
        let Some(value) = row.cells[at].clone() else { return };
        row.cells[at] = Some(neighbour(how, field.kind, &value, fresh.rng));
    });
    // Some neighbours fell into another bucket.
    only_unseen(table, &before, batches);
    Some(format!("other values in the same buckets of `{}`", field.name))
}

/// Rows out of reach are gone.
fn ghosts_gone(table: &Table, batches: &mut Vec<Batch>, fresh: &mut Fresh<'_>) -> Option<String> {
    let share = *[0.4, 1.0].choose(fresh.rng)?;
    let mut gone = 0;
    for number in out_of_reach(table, batches) {
        if fresh.rng.random_bool(share) {
            let before = batches.clone();
            batches.iter_mut().for_each(|batch| batch.rows.retain(|row| row.number != number));
            gone += keep_if_unseen(table, batches, before);
        }
    }
    (gone > 0).then(|| format!("{gone} rows out of reach or superseded are gone"))
}

/// Rows out of reach hold other values.
fn ghosts_changed(table: &Table, batches: &mut Vec<Batch>, fresh: &mut Fresh<'_>) -> Option<String> {
    let mut changed = 0;
    for number in out_of_reach(table, batches) {
        let before = batches.clone();
        rewrite(batches, |row| {
            if row.number == number {
                for (at, field) in table.fields.iter().enumerate() {
                    if !table.is_structural(at) || fresh.rng.random_bool(0.2) {
                        row.cells[at] = field.any(fresh.rng);
                    }
                }
            }
        });
        changed += keep_if_unseen(table, batches, before);
    }
    (changed > 0).then(|| format!("{changed} rows out of reach or superseded are others"))
}

/// New rows out of reach, among the others or in a batch of their own.
fn ghosts_added(table: &Table, batches: &mut Vec<Batch>, fresh: &mut Fresh<'_>) -> Option<String> {
    let count = *[1, 3, 10, 30].choose(fresh.rng)?;
    let alone = fresh.rng.random_bool(0.5);
    let own = fresh.rng.random_range(0..=batches.len());
    if alone {
        batches.insert(own, Batch { source: fresh.rng.random_range(0..AGENCIES.len()), rows: Vec::new() });
    }
    let mut added = 0;
    for _ in 0..count {
        let cells = table.fields.iter().map(|field| field.any(fresh.rng)).collect();
        let row = Row { number: fresh.number(), cells };
        let at = match alone {
            true => own,
            false if batches.is_empty() => return None,
            false => fresh.rng.random_range(0..batches.len()),
        };
        let before = batches.clone();
        let place = fresh.rng.random_range(0..=batches[at].rows.len());
        batches[at].rows.insert(place, row);
        added += keep_if_unseen(table, batches, before);
    }
    (added > 0).then(|| format!("{added} more rows out of reach, {}", if alone { "alone" } else { "among others" }))
}

/// Older revisions of rows, or whole records that were deleted since.
fn older_added(table: &Table, batches: &mut Vec<Batch>, fresh: &mut Fresh<'_>) -> Option<String> {
    let key = table.key?;
    let known: Vec<(usize, Row)> =
        batches.iter().flat_map(|batch| batch.rows.iter().map(|row| (batch.source, row.clone()))).collect();
    let mut added = 0;
    for (source, newer) in known {
        if fresh.rng.random_bool(0.5) {
            continue;
        }
        let mut cells: Vec<_> = table.fields.iter().map(|field| field.any(fresh.rng)).collect();
        cells[key] = newer.cells[key].clone();
        let places: Vec<usize> = (0..batches.len()).filter(|at| batches[*at].source == source).collect();
        let at = *places.choose(fresh.rng)?;
        let before = batches.clone();
        batches[at].rows.push(Row { number: fresh.number(), cells });
        added += keep_if_unseen(table, batches, before);
    }
    (added > 0).then(|| format!("{added} more revisions that are superseded or out of reach"))
}

/// The same rows in other batches and in another order.
fn laid_otherwise(_: &Table, batches: &mut Vec<Batch>, fresh: &mut Fresh<'_>) -> Option<String> {
    if batches.is_empty() {
        return None;
    }
    match fresh.rng.random_range(0..4) {
        0 => batches.shuffle(fresh.rng),
        1 => batches.iter_mut().for_each(|batch| batch.rows.shuffle(fresh.rng)),
        2 => {
            // One batch becomes the end of another of its source.
            let at = fresh.rng.random_range(0..batches.len());
            let source = batches[at].source;
            let to = (0..batches.len()).find(|to| *to != at && batches[*to].source == source)?;
            let rows = std::mem::take(&mut batches[at].rows);
            batches[to].rows.extend(rows);
            batches.remove(at);
        }
        _ => {
            let at = (0..batches.len()).max_by_key(|at| batches[*at].rows.len())?;
            let half = batches[at].rows.len() / 2;
            let rows = batches[at].rows.split_off(half);
            let source = batches[at].source;
            let place = fresh.rng.random_range(0..=batches.len());
            batches.insert(place, Batch { source, rows });
        }
    }
    Some("the same rows lie otherwise".into())
}

/// Rows lie in other batches of their source.
fn exchanged(table: &Table, batches: &mut Vec<Batch>, fresh: &mut Fresh<'_>) -> Option<String> {
    let mut moved = 0;
    for number in numbers(batches) {
        if fresh.rng.random_bool(0.5) {
            continue;
        }
        let before = batches.clone();
        let (at, row) = take_one(batches, number)?;
        let source = batches[at].source;
        put(batches, row, source, Some(at), fresh);
        moved += keep_if_unseen(table, batches, before);
    }
    (moved > 0).then(|| format!("{moved} rows lie in other batches of their source"))
}

/// What one source has sent comes from another, where the scope does not look at the source.
fn from_another_source(table: &Table, batches: &mut Vec<Batch>, fresh: &mut Fresh<'_>) -> Option<String> {
    let another = |source: usize| (source + 1) % AGENCIES.len();
    let mut moved = 0;
    if fresh.rng.random_bool(0.3) {
        for at in 0..batches.len() {
            let before = batches.clone();
            batches[at].source = another(batches[at].source);
            moved += keep_if_unseen(table, batches, before) * batches[at].rows.len();
        }
    } else {
        for number in numbers(batches) {
            if fresh.rng.random_bool(0.5) {
                continue;
            }
            let before = batches.clone();
            let (at, row) = take_one(batches, number)?;
            let source = another(batches[at].source);
            // A copy that stayed would be a row of its own.
            batches.iter_mut().for_each(|batch| batch.rows.retain(|row| row.number != number));
            put(batches, row, source, None, fresh);
            moved += keep_if_unseen(table, batches, before);
        }
    }
    (moved > 0).then(|| format!("{moved} rows come from another source"))
}

/// A dataset that the caller cannot see is empty, or full of other rows.
fn unseen_table(table: &Table, batches: &mut Vec<Batch>, fresh: &mut Fresh<'_>) -> Option<String> {
    if table.grant != Grant::Nothing {
        return None;
    }
    batches.clear();
    if fresh.rng.random_bool(0.5) {
        let rows = (0..fresh.rng.random_range(1..30)).map(|_| {
            let number = fresh.number();
            table.row(number, fresh.rng)
        });
        let rows = rows.collect();
        batches.push(Batch { source: fresh.rng.random_range(0..AGENCIES.len()), rows });
    }
    Some("a dataset that is not there for the caller holds other rows".into())
}

// ------------------------------------------------------------------------------------- tools

/// Changes rows; copies of one row stay copies.
fn rewrite(batches: &mut [Batch], mut change: impl FnMut(&mut Row)) {
    let mut done: HashMap<u32, Vec<Option<String>>> = HashMap::new();
    for row in batches.iter_mut().flat_map(|batch| &mut batch.rows) {
        match done.get(&row.number) {
            Some(cells) => row.cells.clone_from(cells),
            None => {
                change(row);
                done.insert(row.number, row.cells.clone());
            }
        }
    }
}

/// Fields of such an exposure. In half of the cases only those that decide on rows, where there are some.
fn fields_like(table: &Table, fresh: &mut Fresh<'_>, fits: impl Fn(Exposure) -> bool) -> Vec<usize> {
    let fitting: Vec<usize> = (0..table.fields.len()).filter(|at| fits(table.fields[*at].exposure)).collect();
    let deciding: Vec<usize> = fitting.iter().copied().filter(|at| table.is_structural(*at)).collect();
    if deciding.is_empty() || fresh.rng.random_bool(0.5) { fitting } else { deciding }
}

/// Of changes to cells that the caller would see, those rows' that it does not: a cell may be hidden, and yet
/// decide whether its row is.
fn only_unseen(table: &Table, before: &[Batch], batches: &mut Vec<Batch>) {
    if looks_the_same(table, before, batches) {
        return;
    }
    let wanted = std::mem::replace(batches, before.to_vec());
    for number in numbers(before) {
        let last = batches.clone();
        copy_cells(&wanted, batches, number);
        keep_if_unseen(table, batches, last);
    }
}

/// Takes the first copy of a row out, and says of which batch.
fn take_one(batches: &mut [Batch], number: u32) -> Option<(usize, Row)> {
    batches.iter_mut().enumerate().find_map(|(at, batch)| {
        let place = batch.rows.iter().position(|row| row.number == number)?;
        Some((at, batch.rows.remove(place)))
    })
}

/// Puts a row into a batch of that source, in a new one where there is no other than `but`.
fn put(batches: &mut Vec<Batch>, row: Row, source: usize, but: Option<usize>, fresh: &mut Fresh<'_>) {
    let places: Vec<usize> =
        (0..batches.len()).filter(|at| Some(*at) != but && batches[*at].source == source).collect();
    let at = places.choose(fresh.rng).copied().unwrap_or_else(|| {
        batches.push(Batch { source, rows: Vec::new() });
        batches.len() - 1
    });
    let place = fresh.rng.random_range(0..=batches[at].rows.len());
    batches[at].rows.insert(place, row);
}

/// Gives the rows of that number the cells they had.
fn copy_cells(from: &[Batch], to: &mut [Batch], number: u32) {
    let Some(row) = from.iter().flat_map(|batch| &batch.rows).find(|row| row.number == number) else { return };
    for changed in to.iter_mut().flat_map(|batch| &mut batch.rows).filter(|changed| changed.number == number) {
        changed.cells.clone_from(&row.cells);
    }
}

/// One where the table looks as before; otherwise the batches go back, and none.
fn keep_if_unseen(table: &Table, batches: &mut Vec<Batch>, before: Vec<Batch>) -> usize {
    if *batches != before && looks_the_same(table, &before, batches) {
        return 1;
    }
    *batches = before;
    0
}

fn numbers(batches: &[Batch]) -> Vec<u32> {
    Contents(vec![batches.to_vec()]).numbers()
}

fn out_of_reach(table: &Table, batches: &[Batch]) -> Vec<u32> {
    let reachable: HashSet<u32> = table.reachable(batches).iter().map(|row| row.number).collect();
    numbers(batches).into_iter().filter(|number| !reachable.contains(number)).collect()
}
