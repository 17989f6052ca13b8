//! The access gate: a caller, a purpose and the contracts in, a [`View`] out.
//!
//! Policies are Cedar; [`cedar`] loads and asks them, [`attributes`] says which fields of rows they may look
//! at, [`residual`] turns what Cedar leaves open about rows into a [`Scope`], [`moments`] says until when what
//! was decided holds. Whatever cannot be decided is denied.

mod attributes;
mod cedar;
mod moments;
mod residual;

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use cedar_policy::Decision;
use chrono::{DateTime, TimeDelta, Utc};

use crate::{
    audit::Clock,
    dataset::{Dataset, DatasetName, Datasets, Field, scope::Scope},
    disclose::Settings,
    error::{Error, Result},
};
use cedar::{Action, LeftOut, Question, Resource};

/// How long a view may be reused where policies do more with the time than to compare it with known instants: a
/// grant that ends takes at most this long to be felt.
const VIEW_LIFETIME: TimeDelta = TimeDelta::seconds(2);

/// How long where they do not. A view then holds until the next of these instants, and a grant that ends is felt
/// at once; this is for what nobody thought of.
const LONGEST_LIFETIME: TimeDelta = TimeDelta::hours(1);

/// The file of a policy folder that says how much is released. It need not be there.
const DISCLOSURE: &str = "disclosure.json";

/// Who is asking: a person or service of one agency.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The caller's id.
    pub id: String,
    /// The one agency it belongs to.
    pub agency: String,
    /// Its roles.
    pub roles: Vec<String>,
    /// The division it looks after.
    pub territory: Option<String>,
    /// Why it may ask.
    pub purposes: Vec<String>,
    /// Why it asks where it does not say so.
    pub default_purpose: Option<String>,
    /// Names of client certificates that are this caller's: `dns:NAME`, `uri:URI`, `email:ADDRESS` or `cn:NAME`.
    pub certificates: Vec<String>,
    /// Whom others know as this caller, as `ISSUER|SUBJECT` of their tokens.
    pub identities: Vec<String>,
}

/// What a caller may get of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Exposure {
    /// Protected statistics only.
    Aggregate,
    /// A pseudonym of this recipient's own.
    Token,
    /// A coarser form.
    Generalised,
    /// The value.
    Clear,
}

impl Exposure {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Aggregate => "aggregate",
            Self::Token => "token",
            Self::Generalised => "generalised",
            Self::Clear => "clear",
        }
    }
}

/// How a caller may reach the rows of a dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rows {
    /// It may see rows in this scope one by one.
    Open(Scope),
    /// Rows in this scope may only be counted in protected aggregates.
    Sealed(Scope),
}

impl Rows {
    /// The scope, however it may be used.
    pub fn scope(&self) -> &Scope {
        match self {
            Self::Open(scope) | Self::Sealed(scope) => scope,
        }
    }
}

/// A dataset as one caller sees it. Fields it may not see are not in it.
#[derive(Debug, Clone)]
pub struct DatasetView {
    /// The dataset.
    pub dataset: Arc<Dataset>,
    /// The visible fields with their exposure, in the contract's order.
    pub fields: Vec<(String, Exposure)>,
    /// The rows within reach.
    pub rows: Rows,
    /// Whether the caller's agency pushes rows to it, by whichever of its callers.
    pub own: bool,
}

/// What one caller may see for one purpose, under one policy version. Made by [`Policy::view`] alone.
#[derive(Debug)]
pub struct View {
    caller: Arc<Caller>,
    purpose: String,
    policy: String,
    datasets: BTreeMap<DatasetName, DatasetView>,
    /// A name for what it shows, once it was made.
    name: OnceLock<String>,
}

impl View {
    /// Whose view it is.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// For which purpose.
    pub fn purpose(&self) -> &str {
        &self.purpose
    }

    /// Under which policy version.
    pub fn policy(&self) -> &str {
        &self.policy
    }

    /// The datasets that exist for this caller.
    pub fn datasets(&self) -> impl Iterator<Item = &DatasetView> {
        self.datasets.values()
    }

    /// The name for what it shows, which is made once: nothing of a view changes.
    ///
    /// # Errors
    /// Those of making it.
    pub(crate) fn named(&self, make: impl FnOnce() -> Result<String>) -> Result<String> {
        if let Some(name) = self.name.get() {
            return Ok(name.clone());
        }
        let name = make()?;
        Ok(self.name.get_or_init(|| name).clone())
    }

    /// A dataset that exists for this caller.
    pub fn dataset(&self, name: &DatasetName) -> Option<&DatasetView> {
        self.datasets.get(name)
    }
}

/// Leave to push batches to a dataset.
#[derive(Debug, Clone)]
pub struct PushGrant {
    /// The rows it holds for.
    pub scope: Scope,
}

/// The policies in force.
pub struct Policy {
    cedar: cedar::Loaded,
    disclosure: Settings,
    datasets: Datasets,
    clock: Clock,
    views: Mutex<HashMap<ViewKey, DatedView>>,
    grants: Mutex<HashMap<GrantKey, DatedGrant>>,
}

/// Caller and purpose.
type ViewKey = (String, String);

/// Caller and dataset.
type GrantKey = (String, DatasetName);

/// Leave to push, or none, and when it was decided.
type DatedGrant = (DateTime<Utc>, Option<PushGrant>);

/// A view and when it was decided.
type DatedView = (DateTime<Utc>, Arc<View>);

impl Policy {
    /// Loads and checks the policies in `folder` against the contracts.
    ///
    /// # Errors
    /// [`Error::Setup`] with file and line of the first fault.
    pub fn load(folder: &Path, datasets: &Datasets, clock: Clock) -> Result<Self> {
        let files = cedar::read_files(folder)?;
        let cedar = cedar::Loaded::open(folder, &files, datasets)?;
        let disclosure = match files.iter().find(|(name, _)| name == DISCLOSURE) {
            Some((name, text)) => Settings::read(&folder.join(name), text)?,
            None => Settings::default(),
        };
        let policy = Self {
            cedar,
            disclosure,
            datasets: datasets.clone(),
            clock,
            views: Mutex::default(),
            grants: Mutex::default(),
        };
        policy.refuse_forms_that_fields_lack()?;
        for NotCompiled { policy, what, for_whom, outcome, .. } in policy.not_compiled()? {
            tracing::warn!(policy, what, for_whom, outcome, "a policy over rows cannot be compiled");
        }
        if let Err(why) = &policy.cedar.moments {
            tracing::warn!(why, "decisions may change at any time, so policies are asked anew every two seconds");
        }
        Ok(policy)
    }

    /// The version of the policies: a digest of their files.
    pub fn version(&self) -> &str {
        &self.cedar.version
    }

    /// What the policies say about releases.
    pub fn disclosure(&self) -> &Settings {
        &self.disclosure
    }

    /// How many policies there are.
    pub fn len(&self) -> usize {
        self.cedar.policies()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All callers, by id.
    pub fn callers(&self) -> impl Iterator<Item = &Arc<Caller>> {
        self.cedar.callers.values()
    }

    /// The caller of that id.
    pub fn caller(&self, id: &str) -> Option<Arc<Caller>> {
        self.cedar.callers.get(id).cloned()
    }

    /// The caller to whom client certificates of that name belong, such as `dns:uploader.example`.
    pub fn caller_by_certificate_name(&self, name: &str) -> Option<Arc<Caller>> {
        self.cedar.callers.values().find(|caller| caller.certificates.iter().any(|known| known == name)).cloned()
    }

    /// The caller whom an issuer of tokens knows as that subject.
    pub fn caller_by_identity(&self, issuer: &str, subject: &str) -> Option<Arc<Caller>> {
        let known_as = |identity: &String| identity.split_once('|') == Some((issuer, subject));
        self.cedar.callers.values().find(|caller| caller.identities.iter().any(known_as)).cloned()
    }

    /// The purpose a caller asks for: the one it names, its only one, or the one it asks for where it does not say so.
    ///
    /// # Errors
    /// [`Error::PurposeRequired`] or [`Error::PurposeNotAllowed`].
    pub fn purpose(&self, caller: &Caller, named: Option<&str>) -> Result<String> {
        match (named, caller.purposes.as_slice()) {
            (Some(named), has) if has.iter().any(|purpose| purpose == named) => Ok(named.to_owned()),
            (Some(named), has) => {
                Err(Error::PurposeNotAllowed { purpose: named.chars().take(64).collect(), allowed: has.to_vec() })
            }
            (None, [only]) => Ok(only.clone()),
            (None, several) => {
                caller.default_purpose.clone().ok_or_else(|| Error::PurposeRequired { allowed: several.to_vec() })
            }
        }
    }

    /// What the caller may see for that purpose now.
    ///
    /// # Errors
    /// Only a fault of the hub; what is not allowed is not in the view.
    pub fn view(&self, caller: &Arc<Caller>, purpose: &str) -> Result<Arc<View>> {
        let now = (self.clock)();
        let key = (caller.id.clone(), purpose.to_owned());
        let known = self.views.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some((made, view)) = known
            && self.still_holds(made, now)
        {
            return Ok(view);
        }
        let view = Arc::new(self.decide(caller, purpose, now)?);
        self.views.lock().unwrap_or_else(PoisonError::into_inner).insert(key, (now, Arc::clone(&view)));
        Ok(view)
    }

    /// Leave for the caller to push batches to the dataset, if it has it.
    ///
    /// # Errors
    /// Only a fault of the hub.
    pub fn may_push(&self, caller: &Caller, name: &DatasetName) -> Result<Option<PushGrant>> {
        self.may_push_at(caller, name, (self.clock)())
    }

    fn may_push_at(&self, caller: &Caller, name: &DatasetName, now: DateTime<Utc>) -> Result<Option<PushGrant>> {
        let key = (caller.id.clone(), name.clone());
        let known = self.grants.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some((made, grant)) = known
            && self.still_holds(made, now)
        {
            return Ok(grant);
        }
        let grant = self.decide_push(caller, name, now)?;
        self.grants.lock().unwrap_or_else(PoisonError::into_inner).insert(key, (now, grant.clone()));
        Ok(grant)
    }

    /// Whether what was decided at `made` may stand for what would be decided now. Where the clock went back, it
    /// may not.
    fn still_holds(&self, made: DateTime<Utc>, now: DateTime<Utc>) -> bool {
        if now < made {
            return false;
        }
        match &self.cedar.moments {
            Ok(moments) => now - made < LONGEST_LIFETIME && moments.hold(made, now),
            Err(_) => now - made < VIEW_LIFETIME,
        }
    }

    fn decide_push(&self, caller: &Caller, name: &DatasetName, now: DateTime<Utc>) -> Result<Option<PushGrant>> {
        let question = Question::new(caller, "", now)?;
        if self.cedar.ask(&question, Action::BatchPush, Resource::Dataset(name))?.decision != Decision::Allow {
            return Ok(None);
        }
        let Some(contract) = self.datasets.get(name) else { return Ok(None) };
        let scope = self.cedar.rows(&question, Action::RowsWrite, contract)?;
        Ok((scope != Scope::Nothing).then_some(PushGrant { scope }))
    }

    /// Whether any caller of an agency may push batches to the dataset.
    fn pushes(&self, agency: &str, name: &DatasetName, now: DateTime<Utc>) -> Result<bool> {
        let mut callers = self.cedar.callers.values().filter(|caller| caller.agency == agency);
        callers.try_fold(false, |pushes, caller| Ok(pushes || self.may_push_at(caller, name, now)?.is_some()))
    }

    /// Whether the caller may read the access log for that purpose.
    ///
    /// # Errors
    /// Only a fault of the hub.
    pub fn may_read_log(&self, caller: &Caller, purpose: &str) -> Result<bool> {
        let question = Question::new(caller, purpose, (self.clock)())?;
        Ok(self.cedar.ask(&question, Action::LogRead, Resource::Log)?.decision == Decision::Allow)
    }

    /// Whether the caller may have people erased, from all datasets of the hub, for that purpose.
    ///
    /// # Errors
    /// Only a fault of the hub.
    pub fn may_erase(&self, caller: &Caller, purpose: &str) -> Result<bool> {
        let question = Question::new(caller, purpose, (self.clock)())?;
        let decided = self.cedar.ask(&question, Action::RecordsErase, Resource::Hub)?;
        Ok(decided.decision == Decision::Allow)
    }

    /// Which policies give a caller its exposure of each field, for people who ask why.
    ///
    /// # Errors
    /// Only a fault of the hub.
    pub fn explain(&self, caller: &Caller, dataset: &Dataset, purpose: &str) -> Result<Explanation> {
        let question = Question::new(caller, purpose, (self.clock)())?;
        let mut fields = Vec::new();
        for field in &dataset.fields {
            let (exposure, because) = match self.exposure(&question, dataset, field)? {
                None => (None, Vec::new()),
                Some((exposure, because)) => (Some(exposure), because),
            };
            fields.push((field.name.clone(), exposure, because));
        }
        Ok(Explanation {
            read: self.cedar.rows(&question, Action::RowsRead, dataset)?,
            aggregate: self.cedar.rows(&question, Action::RowsAggregate, dataset)?,
            write: self.may_push(caller, &dataset.name)?.map_or(Scope::Nothing, |grant| grant.scope),
            fields,
        })
    }

    /// The policies over rows that could not be compiled into a scope, in the order of their files: by what
    /// is written in them, or for any caller, purpose and dataset as of now. They deny; the hub starts with
    /// them all the same.
    ///
    /// # Errors
    /// Only a fault of the hub.
    pub fn not_compiled(&self) -> Result<Vec<NotCompiled>> {
        let now = (self.clock)();
        let mut found = BTreeMap::new();
        let mut list = |LeftOut { policy, effect, obstacle }: LeftOut, for_whom: &'static str| {
            let (file, line) = self.cedar.origin(&policy);
            found.entry((file.clone(), line, policy.clone())).or_insert_with(|| NotCompiled {
                file,
                line,
                policy,
                what: obstacle.what,
                for_whom,
                instead: obstacle.instead,
                outcome: cedar::outcome(effect),
            });
        };
        for left_out in self.cedar.never_compiled(&self.datasets) {
            list(left_out, "whoever it is for");
        }
        for caller in self.cedar.callers.values() {
            let reads = caller
                .purposes
                .iter()
                .flat_map(|purpose| [(purpose.as_str(), Action::RowsRead), (purpose.as_str(), Action::RowsAggregate)]);
            // Who pushes names no purpose.
            for (purpose, action) in reads.chain([("", Action::RowsWrite)]) {
                let question = Question::new(caller, purpose, now)?;
                for dataset in self.datasets.values() {
                    for left_out in self.cedar.compiled_rows(&question, action, dataset)?.1 {
                        list(left_out, "for one of today's callers, at this moment");
                    }
                }
            }
        }
        Ok(found.into_values().collect())
    }

    /// The fields that a scope looks at although its caller does not see them clear, as of now. Which rows
    /// the caller reaches tells it something of them.
    ///
    /// # Errors
    /// Only a fault of the hub.
    pub fn told_by_scopes(&self) -> Result<Vec<Told>> {
        let now = (self.clock)();
        let mut told = Vec::new();
        for caller in self.cedar.callers.values() {
            for purpose in &caller.purposes {
                let question = Question::new(caller, purpose, now)?;
                for dataset in self.datasets.values() {
                    let Some(rows) = self.reach(&question, dataset)? else { continue };
                    for field in rows.scope().fields().into_iter().filter_map(|name| dataset.field(name)) {
                        let exposure = self.exposure(&question, dataset, field)?.map(|(exposure, _)| exposure);
                        if exposure != Some(Exposure::Clear) {
                            told.push(Told {
                                caller: caller.id.clone(),
                                purpose: purpose.clone(),
                                dataset: dataset.name.clone(),
                                field: field.name.clone(),
                                exposure,
                            });
                        }
                    }
                }
            }
        }
        Ok(told)
    }

    fn decide(&self, caller: &Arc<Caller>, purpose: &str, now: DateTime<Utc>) -> Result<View> {
        let question = Question::new(caller, purpose, now)?;
        let mut datasets = BTreeMap::new();
        for (name, dataset) in &self.datasets {
            let Some(rows) = self.reach(&question, dataset)? else { continue };
            let mut fields = Vec::new();
            for field in dataset.stored_fields() {
                if let Some((exposure, _)) = self.exposure(&question, dataset, field)? {
                    fields.push((field.name.clone(), exposure));
                }
            }
            // Rows of which nothing can be read can still be counted, and only that.
            let readable = fields.iter().any(|(_, exposure)| *exposure > Exposure::Aggregate);
            let rows = match rows {
                Rows::Open(scope) if !readable => Rows::Sealed(scope),
                rows => rows,
            };
            if fields.is_empty() && matches!(rows, Rows::Open(_)) {
                continue;
            }
            let own = self.pushes(&caller.agency, name, now)?;
            datasets.insert(name.clone(), DatasetView { dataset: Arc::clone(dataset), fields, rows, own });
        }
        Ok(View {
            caller: Arc::clone(caller),
            purpose: purpose.to_owned(),
            policy: self.version().to_owned(),
            datasets,
            name: OnceLock::new(),
        })
    }

    /// The rows within reach, if there are any.
    fn reach(&self, question: &Question<'_>, dataset: &Dataset) -> Result<Option<Rows>> {
        Ok(match self.cedar.rows(question, Action::RowsRead, dataset)? {
            Scope::Nothing => match self.cedar.rows(question, Action::RowsAggregate, dataset)? {
                Scope::Nothing => None,
                scope => Some(Rows::Sealed(scope)),
            },
            scope => Some(Rows::Open(scope)),
        })
    }

    /// The richest exposure allowed, and by which policies.
    fn exposure(
        &self,
        question: &Question<'_>,
        dataset: &Dataset,
        field: &Field,
    ) -> Result<Option<(Exposure, Vec<String>)>> {
        for (action, exposure) in LADDER {
            let has_form = match exposure {
                // An identifier is stored as a pseudonym only: the richest there is of it is a token.
                Exposure::Clear => !field.has_token(),
                Exposure::Token => field.has_token(),
                Exposure::Generalised => field.generalise.is_some(),
                Exposure::Aggregate => true,
            };
            if !has_form {
                continue;
            }
            let decided = self.cedar.ask(question, action, Resource::Field(dataset, field))?;
            if decided.decision == Decision::Allow {
                return Ok(Some((exposure, decided.because)));
            }
        }
        Ok(None)
    }

    /// A policy that grants a token of a field without one was meant for another field.
    fn refuse_forms_that_fields_lack(&self) -> Result<()> {
        let now = (self.clock)();
        for caller in self.cedar.callers.values() {
            for purpose in &caller.purposes {
                let question = Question::new(caller, purpose, now)?;
                for dataset in self.datasets.values() {
                    for field in &dataset.fields {
                        let lacking = [
                            (Action::FieldToken, "token", field.has_token()),
                            (Action::FieldGeneralised, "generalised form", field.generalise.is_some()),
                        ];
                        for (action, form, there) in lacking {
                            if there {
                                continue;
                            }
                            let decided = self.cedar.ask(&question, action, Resource::Field(dataset, field))?;
                            if decided.decision == Decision::Allow {
                                let policy = decided.because.first().map_or("", String::as_str);
                                let (file, line) = self.cedar.origin(policy);
                                return Err(Error::setup(
                                    &file,
                                    line,
                                    format!(
                                        "policy `{policy}` grants a {form} of `{}.{}`, whose contract names none",
                                        dataset.name, field.name
                                    ),
                                ));
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// Why a caller sees what it sees of a dataset.
#[derive(Debug)]
pub struct Explanation {
    /// Rows it may read.
    pub read: Scope,
    /// Rows it may count.
    pub aggregate: Scope,
    /// Rows it may push.
    pub write: Scope,
    /// Each field, its exposure, and the policies that give it.
    pub fields: Vec<(String, Option<Exposure>, Vec<String>)>,
}

/// A policy over rows that could not be compiled into a scope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotCompiled {
    /// The file it stands in.
    pub file: PathBuf,
    /// The line it begins in.
    pub line: Option<usize>,
    /// Its id.
    pub policy: String,
    /// What of it could not be compiled.
    pub what: String,
    /// Whose questions it could not be compiled for.
    pub for_whom: &'static str,
    /// What to write instead.
    pub instead: String,
    /// What becomes of it meanwhile.
    pub outcome: &'static str,
}

/// A field that a scope looks at although its caller does not see it clear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The caller.
    pub caller: String,
    /// What for.
    pub purpose: String,
    /// The dataset.
    pub dataset: DatasetName,
    /// The field.
    pub field: String,
    /// What the caller may get of it.
    pub exposure: Option<Exposure>,
}

const LADDER: [(Action, Exposure); 4] = [
    (Action::FieldClear, Exposure::Clear),
    (Action::FieldGeneralised, Exposure::Generalised),
    (Action::FieldToken, Exposure::Token),
    (Action::FieldAggregate, Exposure::Aggregate),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::contract;

    #[test]
    fn a_view_is_named_once() {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
        let datasets = contract::load_folder(&repository.join("schemas")).unwrap();
        let policy = Policy::load(&repository.join("policies"), &datasets, Arc::new(Utc::now)).unwrap();
        let caller = policy.caller("health-analyst").unwrap();
        let view = policy.view(&caller, "epidemiology").unwrap();
        assert!(view.named(|| Err(Error::Busy)).is_err());
        for name in ["one", "two"] {
            assert_eq!(view.named(|| Ok(name.to_owned())).unwrap(), "one");
        }
        let other = policy.view(&caller, "supply-planning").unwrap();
        assert_eq!(other.named(|| Ok("two".to_owned())).unwrap(), "two");
    }
}
