//! `protected-group-key`: cells are cut along coarse columns only. A token or a fine column as a key would make
//! a cell of each person, and names people by their absence where cells are few.

use super::coarse_forms;
use crate::{
    disclose::{coarse, region::Region},
    error::{Error, Result},
};

const NAME: &str = "protected-group-key";

pub fn check(region: &Region) -> Result<()> {
    for key in &region.keys {
        let Err(fault) = coarse::check_key(key, &|column| region.dimension(column), &region.schema) else { continue };
        let column = key.column_refs().into_iter().find(|column| Some(&column.name) == fault.column.as_ref());
        let name = column.map_or_else(|| "a constant".to_owned(), |column| format!("`{}`", region.name(column)));
        return Err(Error::refused(
            NAME,
            format!("a key of a protected aggregate: {name} {}", fault.why.words()),
            format!("group by {}", coarse_forms(region)),
        ));
    }
    Ok(())
}
