//! Cedar: loads schema, policies and entities, and asks them. The only module that speaks to the engine.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock},
};

use cedar_policy::{
    ActionConstraint, Authorizer, Context, Decision, Effect, Entities, Entity, EntityId, EntityTypeName, EntityUid,
    EvalResult, ParseErrors, PartialEntities, PartialEntity, PartialEntityUid, PartialRequest, PolicyId, PolicySet,
    Request, ResourceConstraint, RestrictedExpression, Schema, ValidationMode, Validator, ffi::DetailedError, pst,
};
use chrono::{DateTime, Utc};
use ring::digest::{Context as Digest, SHA256};

use super::{
    Caller, DISCLOSURE,
    attributes::{self, Attributes},
    moments::Moments,
    residual::{Obstacle, Setting, never},
};
use crate::{
    dataset::{Dataset, DatasetName, Datasets, Field, division, is_sql_name, scope::Scope},
    error::{Error, Result},
    hex::hex,
};

/// What policies decide on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    FieldClear,
    FieldGeneralised,
    FieldToken,
    FieldAggregate,
    RowsRead,
    RowsAggregate,
    RowsWrite,
    BatchPush,
    LogRead,
    RecordsErase,
}

impl Action {
    /// Those on what belongs to a dataset.
    const OVER_DATASETS: [Self; 8] = [
        Self::FieldClear,
        Self::FieldGeneralised,
        Self::FieldToken,
        Self::FieldAggregate,
        Self::RowsRead,
        Self::RowsAggregate,
        Self::RowsWrite,
        Self::BatchPush,
    ];

    fn uid(self) -> EntityUid {
        let id = match self {
            Self::FieldClear => "field:clear",
            Self::FieldGeneralised => "field:generalised",
            Self::FieldToken => "field:token",
            Self::FieldAggregate => "field:aggregate",
            Self::RowsRead => "rows:read",
            Self::RowsAggregate => "rows:aggregate",
            Self::RowsWrite => "rows:write",
            Self::BatchPush => "batch:push",
            Self::LogRead => "log:read",
            Self::RecordsErase => "records:erase",
        };
        uid("Action", id)
    }
}

/// What is asked about, where it is known whole.
#[derive(Clone, Copy)]
pub enum Resource<'a> {
    Field(&'a Dataset, &'a Field),
    Dataset(&'a DatasetName),
    Log,
    Hub,
}

impl Resource<'_> {
    fn uid(self) -> EntityUid {
        match self {
            Self::Field(dataset, field) => field_uid(dataset, field),
            Self::Dataset(name) => uid("Dataset", &name.to_string()),
            Self::Log => uid("Log", "access"),
            Self::Hub => uid("Hub", "records"),
        }
    }
}

/// Who asks, why, and when.
pub struct Question<'a> {
    caller: &'a Caller,
    id: EntityUid,
    context: Context,
}

impl<'a> Question<'a> {
    /// The question of a caller for a purpose at a time.
    pub fn new(caller: &'a Caller, purpose: &str, now: DateTime<Utc>) -> Result<Self> {
        // Cedar reads no offsets with a colon, so the time is written in UTC.
        let now = now.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string();
        let context = Context::from_pairs([
            ("purpose".to_owned(), RestrictedExpression::new_string(purpose.to_owned())),
            ("channel".to_owned(), RestrictedExpression::new_string("hub".to_owned())),
            ("now".to_owned(), RestrictedExpression::new_datetime(&now)),
        ])
        .map_err(Error::internal)?;
        Ok(Self { caller, id: uid("Caller", &caller.id), context })
    }
}

/// A decision and the policies behind it.
pub struct Decided {
    pub decision: Decision,
    pub because: Vec<String>,
}

/// A policy over rows that could not be made a scope.
pub struct LeftOut {
    pub policy: String,
    pub effect: Effect,
    pub obstacle: Obstacle,
}

/// The policies of a folder, checked.
pub struct Loaded {
    pub version: String,
    pub callers: BTreeMap<String, Arc<Caller>>,
    /// When decisions can change, or by what they could at any time.
    pub moments: Result<Moments, String>,
    folder: PathBuf,
    schema: Schema,
    attributes: Attributes,
    policies: PolicySet,
    /// Of these, the ones that can apply to an action on what belongs to a dataset.
    applicable: HashMap<DatasetName, HashMap<Action, PolicySet>>,
    origins: HashMap<PolicyId, (String, usize)>,
    entities: Entities,
    rows: PartialEntities,
}

/// The kinds of entities that questions speak of. Parsing a name takes longer than deciding on it.
static KINDS: LazyLock<HashMap<&str, EntityTypeName>> = LazyLock::new(|| {
    let kinds = ["Action", "Agency", "Caller", "Dataset", "Division", "Field", "Hub", "Log", "Row"];
    kinds.into_iter().map(|kind| (kind, type_name(kind))).collect()
});

#[expect(clippy::expect_used, reason = "the kinds are names written in this crate")]
fn type_name(kind: &str) -> EntityTypeName {
    kind.parse().expect("a type name")
}

/// The id of an entity.
pub fn uid(kind: &str, id: &str) -> EntityUid {
    let kind = KINDS.get(kind).cloned().unwrap_or_else(|| type_name(kind));
    EntityUid::from_type_name_and_id(kind, EntityId::new(id))
}

fn field_uid(dataset: &Dataset, field: &Field) -> EntityUid {
    uid("Field", &format!("{}.{}", dataset.name, field.name))
}

impl Loaded {
    /// Checks the files of a folder of policies.
    pub fn open(folder: &Path, files: &[(String, String)], datasets: &Datasets) -> Result<Self> {
        let version = version_of(files);
        let text = |name: &str| -> Result<(PathBuf, &str)> {
            let found = files.iter().find(|(file, _)| file == name);
            let (file, text) = found
                .ok_or_else(|| Error::setup(&folder.join(name), None, "is missing; every policy folder has one"))?;
            Ok((folder.join(file), text))
        };
        let (schema_file, schema_text) = text("schema.cedarschema")?;
        let (schema, warnings) = Schema::from_cedarschema_str(schema_text)
            .map_err(|e| first_fault(&schema_file, schema_text, &DetailedError::from(&e)))?;
        if let Some(warning) = warnings.into_iter().next() {
            return Err(first_fault(&schema_file, schema_text, &DetailedError::from(&warning)));
        }
        let attributes = attributes::read(&schema_file, schema_text, datasets)?;
        let (policies, origins) = read_policies(folder, files)?;
        validate(folder, files, &schema, &policies, &origins)?;
        let (entities_file, entities_text) = text("entities.json")?;
        let (entities, callers) = read_entities(&entities_file, entities_text, &schema, datasets)?;
        let rows = open_rows(&entities, &schema, datasets).map_err(|why| Error::setup(&entities_file, None, why))?;
        let moments = Moments::of(&policies, &entities);
        let applicable = applicable(&policies, &entities, datasets)?;
        let folder = folder.to_owned();
        Ok(Self {
            version,
            callers,
            moments,
            folder,
            schema,
            attributes,
            policies,
            applicable,
            origins,
            entities,
            rows,
        })
    }

    /// How many policies there are.
    pub fn policies(&self) -> usize {
        self.policies.policies().count()
    }

    /// Where a policy stands.
    pub fn origin(&self, policy: &str) -> (PathBuf, Option<usize>) {
        match self.origins.get(&PolicyId::new(policy)) {
            Some((file, line)) => (self.folder.join(file), Some(*line)),
            None => (self.folder.clone(), None),
        }
    }

    /// Asks about something that is known whole.
    pub fn ask(&self, question: &Question<'_>, action: Action, resource: Resource<'_>) -> Result<Decided> {
        let policies = match resource {
            Resource::Field(dataset, _) => self.over(action, &dataset.name),
            Resource::Dataset(name) => self.over(action, name),
            Resource::Log | Resource::Hub => &self.policies,
        };
        let (caller, context) = (question.id.clone(), question.context.clone());
        let request = Request::new(caller, action.uid(), resource.uid(), context, Some(&self.schema));
        // A resource the schema does not fit is none anybody may have.
        let Ok(request) = request else {
            return Ok(Decided { decision: Decision::Deny, because: Vec::new() });
        };
        let response = Authorizer::new().is_authorized(&request, policies, &self.entities);
        // INVARIANT: a policy that fails to evaluate denies; a forbid among them must not be skipped.
        if response.diagnostics().errors().next().is_some() {
            return Ok(Decided { decision: Decision::Deny, because: Vec::new() });
        }
        let mut because: Vec<String> = response.diagnostics().reason().map(ToString::to_string).collect();
        because.sort();
        Ok(Decided { decision: response.decision(), because })
    }

    /// The rows of a dataset for which an action is allowed.
    pub fn rows(&self, question: &Question<'_>, action: Action, dataset: &Dataset) -> Result<Scope> {
        Ok(self.compiled_rows(question, action, dataset)?.0)
    }

    /// The same, with the policies that could not be made part of it.
    pub fn compiled_rows(
        &self,
        question: &Question<'_>,
        action: Action,
        dataset: &Dataset,
    ) -> Result<(Scope, Vec<LeftOut>)> {
        let request = PartialRequest::new(
            PartialEntityUid::from_concrete(question.id.clone()),
            action.uid(),
            PartialEntityUid::from_concrete(uid("Row", &dataset.name.to_string())),
            Some(question.context.clone()),
            &self.schema,
        )
        .map_err(Error::internal)?;
        let policies = self.over(action, &dataset.name);
        let response = policies.tpe(&request, &self.rows, &self.schema).map_err(Error::internal)?;
        let setting = Setting { caller: question.caller, dataset, attributes: &self.attributes };
        let mut permits = Vec::new();
        let mut forbids = Vec::new();
        let mut left_out = Vec::new();
        if response.true_permits().next().is_some() {
            permits.push(Scope::All);
        }
        if response.true_forbids().next().is_some() {
            forbids.push(Scope::All);
        }
        let mut leave_out = |policy: &PolicyId, effect: Effect, obstacle: Obstacle| {
            left_out.push(LeftOut { policy: policy.to_string(), effect, obstacle });
        };
        let mut residuals: Vec<_> = response.residual_policies().collect();
        // Cedar keeps them in no order, and equal policies should make equal scopes.
        residuals.sort_by_key(|policy| policy.id().to_string());
        for policy in residuals {
            match (policy.effect(), compile(&policy, &setting)) {
                (Effect::Permit, Ok(scope)) => permits.push(scope),
                (Effect::Forbid, Ok(scope)) => forbids.push(scope),
                // INVARIANT: what cannot be compiled denies.
                (Effect::Permit, Err(obstacle)) => leave_out(policy.id(), Effect::Permit, obstacle),
                (Effect::Forbid, Err(obstacle)) => {
                    forbids.push(Scope::All);
                    leave_out(policy.id(), Effect::Forbid, obstacle);
                }
            }
        }
        // INVARIANT: so does what fails to evaluate.
        for policy in response.error_permits() {
            leave_out(policy, Effect::Permit, Obstacle::failure());
        }
        for policy in response.error_forbids() {
            forbids.push(Scope::All);
            leave_out(policy, Effect::Forbid, Obstacle::failure());
        }
        let allowed = Scope::Every(vec![Scope::Any(permits), Scope::Not(Box::new(Scope::Any(forbids)))]);
        Ok((without_territory(allowed, dataset).simplified(), left_out))
    }

    /// The policies over rows with a part that is a scope for nobody: whoever asks, for whatever, whenever.
    pub fn never_compiled(&self, datasets: &Datasets) -> Vec<LeftOut> {
        let left_out = |policy: &cedar_policy::Policy| {
            let obstacle = match policy.to_pst() {
                Err(_) => Obstacle::whole(),
                Ok(written) => written.body().clauses().iter().find_map(|clause| {
                    let (pst::Clause::When(expr) | pst::Clause::Unless(expr)) = clause;
                    never(expr, &self.attributes, datasets)
                })?,
            };
            Some(LeftOut { policy: policy.id().to_string(), effect: policy.effect(), obstacle })
        };
        self.policies.policies().filter(|policy| self.decides_on_rows(policy)).filter_map(left_out).collect()
    }

    fn decides_on_rows(&self, policy: &cedar_policy::Policy) -> bool {
        let over_rows = [Action::RowsRead, Action::RowsAggregate, Action::RowsWrite];
        over_rows.into_iter().any(|action| decides_on(policy, action, &self.entities))
    }

    /// The policies that can apply to an action on what belongs to a dataset.
    fn over(&self, action: Action, dataset: &DatasetName) -> &PolicySet {
        self.applicable.get(dataset).and_then(|actions| actions.get(&action)).unwrap_or(&self.policies)
    }
}

/// The policies that can apply to each action on what belongs to each dataset.
///
/// INVARIANT: what is left out is false for all of that by its head alone, whoever asks. So it permits nothing,
/// forbids nothing, cannot fail and leaves nothing open.
fn applicable(
    policies: &PolicySet,
    entities: &Entities,
    datasets: &Datasets,
) -> Result<HashMap<DatasetName, HashMap<Action, PolicySet>>> {
    let mut all = HashMap::new();
    for name in datasets.keys() {
        let mut actions = HashMap::new();
        for action in Action::OVER_DATASETS {
            let chosen = policies
                .policies()
                .filter(|policy| decides_on(policy, action, entities) && !is_for_others(policy, name, entities));
            actions.insert(action, PolicySet::from_policies(chosen.cloned()).map_err(Error::internal)?);
        }
        all.insert(name.clone(), actions);
    }
    Ok(all)
}

fn decides_on(policy: &cedar_policy::Policy, action: Action, entities: &Entities) -> bool {
    let action = action.uid();
    let holds = |named: &EntityUid| action == *named || entities.is_ancestor_of(named, &action);
    match policy.action_constraint() {
        ActionConstraint::Any => true,
        ActionConstraint::Eq(named) => holds(&named),
        ActionConstraint::In(named) => named.iter().any(holds),
    }
}

/// Whether the head of a policy names another dataset or agency. A dataset, its fields and its rows lie in the
/// dataset and its agency, and in no other of either.
fn is_for_others(policy: &cedar_policy::Policy, dataset: &DatasetName, entities: &Entities) -> bool {
    let (ResourceConstraint::In(above) | ResourceConstraint::IsIn(_, above)) = policy.resource_constraint() else {
        return false;
    };
    let dataset = uid("Dataset", &dataset.to_string());
    let is_owner = ["Agency", "Dataset"].contains(&above.type_name().to_string().as_str());
    is_owner && above != dataset && !entities.is_ancestor_of(&above, &dataset)
}

/// What becomes of a policy that cannot be compiled.
pub fn outcome(effect: Effect) -> &'static str {
    match effect {
        Effect::Permit => "this permit is left out",
        Effect::Forbid => "this forbid forbids all rows",
    }
}

/// On a dataset without territories, nothing lies in one.
fn without_territory(scope: Scope, dataset: &Dataset) -> Scope {
    if dataset.territory.is_some() {
        return scope;
    }
    let again = |parts: Vec<Scope>| parts.into_iter().map(|part| without_territory(part, dataset)).collect();
    match scope {
        Scope::Within(_) | Scope::At(_) | Scope::HasTerritory => Scope::Nothing,
        Scope::Not(inner) => Scope::Not(Box::new(without_territory(*inner, dataset))),
        Scope::Every(parts) => Scope::Every(again(parts)),
        Scope::Any(parts) => Scope::Any(again(parts)),
        other => other,
    }
}

fn compile(policy: &cedar_policy::Policy, setting: &Setting<'_>) -> Result<Scope, Obstacle> {
    let body = policy.to_pst().map_err(|_| Obstacle::whole())?;
    let mut parts = Vec::new();
    for clause in body.body().clauses() {
        parts.push(match clause {
            pst::Clause::When(expr) => setting.scope(expr)?,
            pst::Clause::Unless(expr) => Scope::Not(Box::new(setting.scope(expr)?)),
        });
    }
    Ok(Scope::Every(parts))
}

/// The files that make a policy version, sorted by name.
pub fn read_files(folder: &Path) -> Result<Vec<(String, String)>> {
    let fault = |e: std::io::Error| Error::setup(folder, None, format!("cannot read the policies: {e}"));
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(fault)? {
        let path = entry.map_err(fault)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.ends_with(".cedar") || ["schema.cedarschema", "entities.json", DISCLOSURE].contains(&name.as_str()) {
            let text =
                fs::read_to_string(&path).map_err(|e| Error::setup(&path, None, format!("cannot read it: {e}")))?;
            files.push((name, text));
        }
    }
    files.sort();
    Ok(files)
}

fn version_of(files: &[(String, String)]) -> String {
    let mut digest = Digest::new(&SHA256);
    for (name, text) in files {
        for part in [name, text] {
            digest.update(&(part.len() as u64).to_le_bytes());
            digest.update(part.as_bytes());
        }
    }
    hex(&digest.finish().as_ref()[..8])
}

type Policies = (PolicySet, HashMap<PolicyId, (String, usize)>);

fn read_policies(folder: &Path, files: &[(String, String)]) -> Result<Policies> {
    let mut all = PolicySet::new();
    let mut origins = HashMap::new();
    for (name, text) in files.iter().filter(|(name, _)| name.ends_with(".cedar")) {
        let file = folder.join(name);
        let parsed: PolicySet = text.parse().map_err(|errors: ParseErrors| match errors.iter().next() {
            Some(error) => first_fault(&file, text, &DetailedError::from(error)),
            None => Error::setup(&file, None, "cannot be read"),
        })?;
        if parsed.templates().next().is_some() {
            return Err(Error::setup(&file, None, "holds a template; write policies out"));
        }
        let mut at = 0;
        for (number, policy) in parsed.policies().enumerate() {
            let id = match policy.annotation("id") {
                Some(id) if !id.is_empty() => id.to_owned(),
                _ => format!("{name}#{number}"),
            };
            let written = policy.to_cedar().unwrap_or_default();
            let start = text.get(at..).and_then(|rest| rest.find(&written)).map_or(at, |found| at + found);
            at = start + written.len();
            let line = line_of(text, start);
            let id = PolicyId::new(id);
            all.add(policy.new_id(id.clone()))
                .map_err(|_| Error::setup(&file, Some(line), format!("the policy id `{id}` is used twice")))?;
            origins.insert(id, (name.clone(), line));
        }
    }
    Ok((all, origins))
}

fn validate(
    folder: &Path,
    files: &[(String, String)],
    schema: &Schema,
    policies: &PolicySet,
    origins: &HashMap<PolicyId, (String, usize)>,
) -> Result<()> {
    let result = Validator::new(schema.clone()).validate(policies, ValidationMode::Strict);
    let errors = result.validation_errors().map(|e| (e.policy_id().clone(), DetailedError::from(e)));
    // A policy that can never apply is a mistake too, and one nobody would notice.
    let warnings = result.validation_warnings().map(|w| (w.policy_id().clone(), DetailedError::from(w)));
    let Some((id, fault)) = errors.chain(warnings).next() else { return Ok(()) };
    let (name, line) = origins.get(&id).cloned().unwrap_or_default();
    let text = files.iter().find(|(file, _)| *file == name).map_or("", |(_, text)| text.as_str());
    let line = fault.source_locations.first().map_or(line, |place| line_of(text, place.loc.start));
    Err(Error::setup(&folder.join(name), Some(line), fault.message))
}

fn first_fault(file: &Path, text: &str, fault: &DetailedError) -> Error {
    let line = fault.source_locations.first().map(|place| line_of(text, place.loc.start));
    Error::setup(file, line, fault.message.clone())
}

fn line_of(text: &str, byte: usize) -> usize {
    1 + text.as_bytes().iter().take(byte).filter(|b| **b == b'\n').count()
}

/// The entities of the file, and those the hub adds: datasets, fields, divisions and the log.
fn read_entities(
    file: &Path,
    text: &str,
    schema: &Schema,
    datasets: &Datasets,
) -> Result<(Entities, BTreeMap<String, Arc<Caller>>)> {
    let fault = |why: String| Error::setup(file, None, why);
    let written: serde_json::Value =
        serde_json::from_str(text).map_err(|e| Error::setup(file, Some(e.line()), e.to_string()))?;
    let entities = Entities::from_json_str(text, Some(schema)).map_err(|e| fault(DetailedError::from(&e).message))?;
    // INVARIANT: an agency lies in nothing, so that being in one is being it. Scopes over sources rely on it.
    for agency in entities.iter().filter(|entity| entity.uid().type_name().to_string() == "Agency") {
        if let Some(above) = entities.ancestors(&agency.uid()).into_iter().flatten().next() {
            return Err(fault(format!(
                "{} lies in {above}; an agency has no parents, since what it owns and sends is its own",
                agency.uid()
            )));
        }
    }
    let mut added = vec![Entity::with_uid(uid("Log", "access"))];
    for dataset in datasets.values() {
        let agency = uid("Agency", &dataset.name.agency);
        if entities.get(&agency).is_none() {
            return Err(fault(format!(
                "Agency::\"{}\", which owns dataset `{}`, is not listed",
                dataset.name.agency, dataset.name
            )));
        }
        let owner = uid("Dataset", &dataset.name.to_string());
        added.push(Entity::new_no_attrs(owner.clone(), HashSet::from([agency])));
        for field in &dataset.fields {
            let attributes = HashMap::from([
                ("name".to_owned(), RestrictedExpression::new_string(field.name.clone())),
                ("class".to_owned(), RestrictedExpression::new_string(field.class.word().to_owned())),
                ("has_token".to_owned(), RestrictedExpression::new_bool(field.has_token())),
                ("has_generalised".to_owned(), RestrictedExpression::new_bool(field.generalise.is_some())),
            ]);
            let id = field_uid(dataset, field);
            added.push(Entity::new(id, attributes, HashSet::from([owner.clone()])).map_err(|e| fault(e.to_string()))?);
        }
    }
    for code in division_codes(&written) {
        if division::canonical(&code).as_deref() != Some(code.as_str()) {
            return Err(fault(format!(
                "Division::\"{code}\" is not in canonical form: write 2, 4, 6, 9, 12 or 15 digits without padding"
            )));
        }
        // INVARIANT: a division lies in its prefixes and in nothing else, listed or not. Scopes over territories
        // rely on it.
        let id = uid("Division", &code);
        let above = division::LENGTHS.iter().filter(|length| **length < code.len());
        let parents: HashSet<EntityUid> = above.map(|length| uid("Division", &code[..*length])).collect();
        if let Some(wrong) = entities.ancestors(&id).into_iter().flatten().find(|above| !parents.contains(*above)) {
            return Err(fault(format!(
                "{id} lies in {wrong}, which is no prefix of its code; leave out `parents`, the hub adds them"
            )));
        }
        let attributes = entities.get(&id).map(|listed| listed.clone().into_inner().1).unwrap_or_default();
        added.push(Entity::new(id, attributes, parents).map_err(|e| fault(e.to_string()))?);
    }
    let entities = entities.upsert_entities(added, Some(schema)).map_err(|e| fault(DetailedError::from(&e).message))?;

    let mut callers = BTreeMap::new();
    for entity in entities.iter().filter(|entity| entity.uid().type_name().to_string() == "Caller") {
        let caller = read_caller(entity, &entities).map_err(fault)?;
        callers.insert(caller.id.clone(), Arc::new(caller));
    }
    only_one_each(callers.values().map(Arc::as_ref)).map_err(fault)?;
    Ok((entities, callers))
}

fn read_caller(entity: &Entity, entities: &Entities) -> Result<Caller, String> {
    let id = entity.uid().id().unescaped().to_owned();
    let mut agencies = Vec::new();
    let mut roles = Vec::new();
    for ancestor in entities.ancestors(&entity.uid()).into_iter().flatten() {
        match ancestor.type_name().to_string().as_str() {
            "Agency" => agencies.push(ancestor.id().unescaped().to_owned()),
            "Role" => roles.push(ancestor.id().unescaped().to_owned()),
            _ => {}
        }
    }
    roles.sort();
    let [agency] = <[String; 1]>::try_from(agencies).map_err(|_| {
        format!("Caller::\"{id}\" must be in exactly one agency; its rows and tokens are that agency's")
    })?;
    if !is_sql_name(&agency) {
        return Err(format!("Agency::\"{agency}\" must be lower-case letters, digits and `_`"));
    }
    let texts = |name: &str| match entity.attr(name) {
        Some(Ok(EvalResult::Set(set))) => set
            .iter()
            .filter_map(|text| match text {
                EvalResult::String(text) => Some(text.clone()),
                _ => None,
            })
            .collect::<BTreeSet<_>>(),
        _ => BTreeSet::new(),
    };
    let purposes = texts("purposes");
    if purposes.is_empty() {
        return Err(format!("Caller::\"{id}\" has no purpose and could never ask"));
    }
    let territory = match entity.attr("territory") {
        Some(Ok(EvalResult::EntityUid(division))) => Some(division.id().unescaped().to_owned()),
        _ => None,
    };
    let default_purpose = match entity.attr("default_purpose") {
        Some(Ok(EvalResult::String(purpose))) if purposes.contains(&purpose) => Some(purpose),
        Some(Ok(EvalResult::String(purpose))) => {
            return Err(format!("Caller::\"{id}\" asks for `{purpose}` by default, which is none of its purposes"));
        }
        _ => None,
    };
    let (certificates, identities) = (texts("certificates"), texts("identities"));
    if let Some(name) = certificates.iter().find(|name| !is_certificate_name(name)) {
        return Err(format!(
            "Caller::\"{id}\" has the certificate `{name}`; write `dns:NAME` (in small letters of ASCII), `uri:URI`, \
             `email:ADDRESS` or `cn:NAME`"
        ));
    }
    if let Some(identity) = identities.iter().find(|identity| !is_identity(identity)) {
        return Err(format!("Caller::\"{id}\" has the identity `{identity}`; write `ISSUER|SUBJECT`"));
    }
    Ok(Caller {
        id,
        agency,
        roles,
        territory,
        purposes: purposes.into_iter().collect(),
        default_purpose,
        certificates: certificates.into_iter().collect(),
        identities: identities.into_iter().collect(),
    })
}

fn is_certificate_name(name: &str) -> bool {
    match name.split_once(':') {
        // As certificates are read: another form of the same name would never be met.
        Some(("dns", host)) => {
            !host.is_empty() && host.is_ascii() && !host.bytes().any(|byte| byte.is_ascii_uppercase())
        }
        Some(("uri" | "email" | "cn", name)) => !name.is_empty(),
        _ => false,
    }
}

fn is_identity(identity: &str) -> bool {
    identity.split_once('|').is_some_and(|(issuer, subject)| !issuer.is_empty() && !subject.is_empty())
}

/// Refuses a certificate or an identity that two callers claim: nobody could say who is asking.
fn only_one_each<'a>(callers: impl Iterator<Item = &'a Caller>) -> Result<(), String> {
    let mut owners: BTreeMap<&str, &str> = BTreeMap::new();
    for caller in callers {
        for name in caller.certificates.iter().chain(&caller.identities) {
            if let Some(other) = owners.insert(name, &caller.id) {
                return Err(format!("`{name}` is both Caller::\"{other}\" and Caller::\"{}\"", caller.id));
            }
        }
    }
    Ok(())
}

/// Every division named anywhere in the entities.
fn division_codes(value: &serde_json::Value) -> BTreeSet<String> {
    let mut codes = BTreeSet::new();
    let mut open = vec![value];
    while let Some(value) = open.pop() {
        match value {
            serde_json::Value::Object(members) => {
                if let (Some("Division"), Some(id)) =
                    (members.get("type").and_then(|t| t.as_str()), members.get("id").and_then(|id| id.as_str()))
                {
                    codes.insert(id.to_owned());
                }
                open.extend(members.values());
            }
            serde_json::Value::Array(items) => open.extend(items),
            _ => {}
        }
    }
    codes
}

/// For partial evaluation: all entities, and one row a dataset of which only the dataset is known.
fn open_rows(entities: &Entities, schema: &Schema, datasets: &Datasets) -> Result<PartialEntities, String> {
    let mut all = Vec::new();
    for entity in entities.iter().cloned() {
        let (id, attributes, ancestors) = entity.into_inner();
        let attributes: BTreeMap<pst::SmolStr, RestrictedExpression> =
            attributes.into_iter().map(|(name, value)| (name.into(), value)).collect();
        let known = PartialEntity::new(id, Some(attributes), Some(ancestors), Some(BTreeMap::new()), schema);
        all.push(known.map_err(|e| e.to_string())?);
    }
    for name in datasets.keys() {
        let dataset = uid("Dataset", &name.to_string());
        let mut above: HashSet<EntityUid> = entities.ancestors(&dataset).into_iter().flatten().cloned().collect();
        above.insert(dataset);
        let row = PartialEntity::new(uid("Row", &name.to_string()), None, Some(above), None, schema);
        all.push(row.map_err(|e| e.to_string())?);
    }
    PartialEntities::from_partial_entities(all, schema).map_err(|e| e.to_string())
}
