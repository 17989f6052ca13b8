//! What answers will look like, in the forms in which clients are told of it. Descriptions that the hub gives again are
//! brought into these forms once.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use arrow_flight::{FlightData, encode::FlightDataEncoderBuilder};
use bytes::Bytes;
use futures::{FutureExt, StreamExt, stream};
use serde_json::json;

use super::prepared;
use crate::{disclose::ColumnExposure, error::Result, hub::Described};

/// What an answer will look like.
#[derive(Debug)]
pub(super) struct Shape {
    /// Whether the statement is about the catalogue alone.
    pub(super) look_up: bool,
    /// The types of its parameters.
    pub(super) parameters: Vec<DataType>,
    /// What is known of its columns; nothing where that depends on the values of parameters.
    pub(super) columns: Vec<ColumnExposure>,
    /// The same as JSON.
    pub(super) facts: Bytes,
    /// Its schema as it stands in what is told of an answer.
    pub(super) encoded: Bytes,
    /// Its schema as rows go out under it.
    pub(super) told: Told,
}

/// A schema as it stands before the rows.
#[derive(Debug, Clone)]
pub(super) struct Told {
    /// The schema, in types that every client reads.
    pub(super) schema: SchemaRef,
    /// Its message; nothing where rows have to be brought into another form before they go out.
    pub(super) header: Option<Bytes>,
}

impl Told {
    /// A schema whose message is made now.
    pub(super) fn new(schema: SchemaRef) -> Self {
        let header = header_of(&schema);
        Self { schema, header }
    }
}

impl Shape {
    /// Of what the hub says of a statement about datasets.
    pub(super) fn of(described: &Described) -> Result<Self> {
        let Described { parameters, schema, columns } = described;
        let schema = with_exposures(schema, columns);
        Ok(Self {
            look_up: false,
            parameters: parameters.clone(),
            columns: columns.clone(),
            facts: json!({ "columns": columns }).to_string().into(),
            encoded: prepared::encoded(&schema)?,
            told: Told::new(schema),
        })
    }

    /// Of what the hub says of a statement about the catalogue.
    pub(super) fn of_look_up(described: &Described) -> Result<Self> {
        Ok(Self { look_up: true, ..Self::of(described)? })
    }

    /// What its forms take in memory besides what it repeats of its description, about, in bytes.
    fn size(&self) -> usize {
        let header = self.told.header.as_ref().map_or(0, Bytes::len);
        self.facts.len() + self.encoded.len() + header + self.told.schema.fields().size()
    }
}

/// Fewest shapes that are added before those are looked for whose descriptions are gone.
const FEW: usize = 64;

/// The most that a shape and its description take for it to be kept while no question holds it, in bytes. A shape is
/// several times its description, and there may be a quarter more of them than the hub keeps descriptions.
const LARGEST: usize = 32 << 10;

/// Shapes of the descriptions that the hub keeps, for as long as it does.
pub(super) struct Shapes(Mutex<Known>);

struct Known {
    /// By the address of the description.
    shapes: HashMap<usize, Entry>,
    /// How many there may be before those are swept out whose descriptions are gone.
    most: usize,
}

struct Entry {
    of: Weak<Described>,
    shape: Weak<Shape>,
    /// Keeps it where it is small; a large one is there for as long as questions hold it, which share it then.
    _kept: Option<Arc<Shape>>,
}

impl Default for Shapes {
    fn default() -> Self {
        Self(Mutex::new(Known { shapes: HashMap::new(), most: FEW }))
    }
}

impl Shapes {
    /// The shape of a description of a statement about datasets.
    pub(super) fn of(&self, described: &Arc<Described>) -> Result<Arc<Shape>> {
        let address = Arc::as_ptr(described).addr();
        // INVARIANT: an address is that of one description as long as a pointer to it is kept beside it, weak as it is.
        if let Some(shape) = self.known().shapes.get(&address).and_then(|entry| entry.shape.upgrade()) {
            return Ok(shape);
        }
        let shape = Arc::new(Shape::of(described)?);
        // One that nobody else holds will not come again.
        if Arc::strong_count(described) > 1 {
            let kept = (described.size() + shape.size() <= LARGEST).then(|| Arc::clone(&shape));
            let mut known = self.known();
            if known.shapes.len() >= known.most {
                known.shapes.retain(|_, entry| entry.of.strong_count() > 0);
                known.most = known.shapes.len() + FEW.max(known.shapes.len() / 4);
            }
            let (of, shape) = (Arc::downgrade(described), Arc::downgrade(&shape));
            known.shapes.insert(address, Entry { of, shape, _kept: kept });
        }
        Ok(shape)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The message of a schema, as the library makes it; nothing where it would send rows under another schema.
fn header_of(schema: &SchemaRef) -> Option<Bytes> {
    let mut messages = FlightDataEncoderBuilder::new().with_schema(Arc::clone(schema)).build(stream::empty());
    if messages.known_schema().as_ref() != Some(schema) {
        return None;
    }
    // What it has to say before any rows is there at once.
    let FlightData { data_header, .. } = messages.next().now_or_never()??.ok()?;
    Some(data_header)
}

/// A schema as clients get it, each field with its exposure and its noise.
fn with_exposures(schema: &Schema, columns: &[ColumnExposure]) -> SchemaRef {
    let fields = schema.fields().iter().enumerate().map(|(at, field)| {
        let Some(column) = columns.get(at) else { return plain_field(field) };
        let mut metadata = HashMap::from([("gridhub.exposure".to_owned(), column.exposure.clone())]);
        if let Some(noise) = &column.noise {
            metadata.insert("gridhub.noise".to_owned(), json!(noise).to_string());
        }
        plain_field(field).with_name(&column.name).with_metadata(metadata)
    });
    Arc::new(Schema::new(fields.collect::<Fields>()))
}

/// A schema in types that every client reads.
pub(super) fn plain_schema(schema: &Schema) -> Schema {
    Schema::new(schema.fields().iter().map(|field| plain_field(field)).collect::<Fields>())
}

/// Nullable always: a promise that nothing is missing is not the hub's to make before it has looked.
fn plain_field(field: &Field) -> Field {
    let metadata = field.metadata().clone();
    Field::new(field.name(), plain(field.data_type()), true).with_metadata(metadata)
}

/// The type that every client reads and that holds the same values: views and dictionaries are the engine's affair.
pub(super) fn plain(kind: &DataType) -> DataType {
    match kind {
        DataType::Utf8View => DataType::Utf8,
        DataType::BinaryView => DataType::Binary,
        DataType::Dictionary(_, values) => plain(values),
        DataType::List(item) => DataType::List(Arc::new(plain_field(item))),
        DataType::LargeList(item) => DataType::LargeList(Arc::new(plain_field(item))),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(|field| plain_field(field)).collect()),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(name: &str) -> Arc<Described> {
        let schema = Arc::new(Schema::new(vec![Field::new(name, DataType::Utf8View, false)]));
        Arc::new(Described { parameters: Vec::new(), schema, columns: Vec::new() })
    }

    #[test]
    fn a_description_has_one_shape_as_long_as_it_is_kept() {
        let shapes = Shapes::default();
        let described = |at: usize| described(&at.to_string());
        let kept: Vec<_> = (0..2 * FEW).map(described).collect();
        let held = kept.clone();
        let first: Vec<_> = kept.iter().map(|one| shapes.of(one).unwrap()).collect();
        for (at, (one, first)) in kept.iter().zip(&first).enumerate() {
            assert!(Arc::ptr_eq(&shapes.of(one).unwrap(), first));
            assert_eq!(*first.told.schema.field(0), Field::new(at.to_string(), DataType::Utf8, true));
        }
        // What nobody else keeps is not kept here.
        let gone = described(0);
        assert!(!Arc::ptr_eq(&shapes.of(&gone).unwrap(), &shapes.of(&gone).unwrap()));
        drop((kept, held));
        for at in 0..4 * FEW {
            let one = described(at);
            let _held = Arc::clone(&one);
            assert_eq!(shapes.of(&one).unwrap().told.schema.field(0).name(), &at.to_string());
        }
        assert!(shapes.known().shapes.len() <= FEW);
    }

    #[test]
    fn shapes_of_descriptions_that_are_gone_are_few() {
        let shapes = Shapes::default();
        let kept: Vec<_> = (0..8 * FEW).map(|at| described(&at.to_string())).collect();
        let _held = kept.clone();
        for one in &kept {
            shapes.of(one).unwrap();
        }
        for at in 0..16 * FEW {
            let one = described(&at.to_string());
            let _held = Arc::clone(&one);
            shapes.of(&one).unwrap();
            assert!(shapes.known().shapes.len() <= 10 * FEW);
        }
        assert!(kept.iter().all(|one| shapes.known().shapes.contains_key(&Arc::as_ptr(one).addr())));
    }

    #[test]
    fn what_is_large_is_shared_and_not_kept() {
        let shapes = Shapes::default();
        let is_kept = |length: usize| {
            let described = described(&"x".repeat(length));
            let _held = Arc::clone(&described);
            // Also of a description that is small itself.
            assert!(described.size() < LARGEST / 2);
            let shape = shapes.of(&described).unwrap();
            assert!(Arc::ptr_eq(&shapes.of(&described).unwrap(), &shape));
            let left = Arc::downgrade(&shape);
            drop(shape);
            assert_eq!(shapes.of(&described).unwrap().told.schema.field(0).name().len(), length);
            left.strong_count() > 0
        };
        assert!(is_kept(LARGEST / 8));
        assert!(!is_kept(LARGEST / 3));
    }

    #[test]
    fn schemas_that_the_library_changes_have_no_message_of_their_own() {
        let told = |kind: DataType| Told::new(Arc::new(Schema::new(vec![Field::new("n", kind, true)])));
        assert!(told(DataType::Int64).header.is_some());
        assert!(told(DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8))).header.is_none());
        assert!(told(DataType::LargeList(Arc::new(Field::new_list_field(DataType::Int64, true)))).header.is_none());
    }
}
