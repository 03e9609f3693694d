//! [`Drivers`]: the drivers that options can name, and what each makes of its options.

use std::any::Any;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::path::Path;
use std::sync::Arc;

use coblk_aio::Co;
use coblk_qapi::{Deferred, Error, Schema};
use serde_json::{Map, Value};

use super::creates::{Creator, creator};
use super::measures::{Measurer, measurer};
use super::{
    CreateError, Creates, Creating, Creation, Driver, EventType, Measure, Measures, OpenError,
    Opening, Registry, Reopen, Reopening,
};
use crate::backend::BlockBackend;
use crate::driver::BlockDriver;
use crate::graph::node::BlockNode;
use crate::graph::{GraphError, MAX_CHILDREN, MAX_HEIGHT};
use crate::options::{
    self, AnyOptions, DriverConfig, NodeOptions, NodeRef, OptionsError, OwnOptions, TAG,
};
use crate::sidecar::WithSidecar;

/// A driver, whatever its type and that of its options.
pub(crate) trait Factory: Send + Sync {
    fn read(&self, options: Deferred) -> Result<Arc<dyn AnyOptions>, Error>;

    fn takes(&self, options: &dyn AnyOptions) -> bool;

    fn schema(&self) -> Result<Schema, Error>;

    fn changeable(&self) -> &'static [&'static str];

    fn events(&self) -> &'static [EventType];

    fn co_open(
        &self,
        opening: &Opening<'_, '_>,
        options: &dyn AnyOptions,
    ) -> Result<Arc<BlockNode>, OpenError>;

    fn co_prepare_reopen<'a>(
        &self,
        driver: &'a dyn BlockDriver,
        reopening: &Reopening<'_, '_>,
        options: &dyn AnyOptions,
    ) -> Result<Box<dyn Reopen + 'a>, OpenError>;
}

/// The factory of one driver: the only place that knows its types.
struct Typed<D>(PhantomData<fn() -> D>);

impl<D: Driver> Typed<D> {
    #[inline(never)]
    fn options(options: &dyn AnyOptions) -> Result<&D::Options, OpenError> {
        let own = options.as_any().downcast_ref();
        own.ok_or_else(|| OpenError::broken("was given the options of another driver"))
    }

    /// Not on the stack while chains are opened.
    #[inline(never)]
    fn make(opening: &Opening<'_, '_>, driver: D) -> Result<Arc<BlockNode>, OpenError> {
        if let Err(refused) = opening.check(&driver, D::NAMES) {
            // It was opened, whatever is wrong with it.
            if let Err(error) = driver.co_close(opening.co()) {
                tracing::error!(node = opening.node_name(), %error, "a driver cannot be closed");
            }
            return Err(refused);
        }
        match opening.bitmaps() {
            None => new_node(opening, driver),
            Some(path) => with_bitmaps(opening, Box::new(driver), path),
        }
    }
}

fn new_node(
    opening: &Opening<'_, '_>,
    driver: impl BlockDriver,
) -> Result<Arc<BlockNode>, OpenError> {
    Ok(match opening.is_active() {
        true => BlockNode::try_new(opening.node_name(), driver),
        false => BlockNode::try_new_inactive(opening.node_name(), driver),
    }?)
}

/// A node whose bitmaps are kept in a file.
fn with_bitmaps(
    opening: &Opening<'_, '_>,
    driver: Box<dyn BlockDriver>,
    path: &Path,
) -> Result<Arc<BlockNode>, OpenError> {
    let co = opening.co();
    let read_only = opening.mode().read_only || driver.is_read_only();
    match WithSidecar::co_new(co, driver, path, (read_only, opening.is_active())) {
        Ok(driver) => new_node(opening, driver),
        Err((driver, error)) => {
            if let Err(error) = driver.co_close(co) {
                tracing::error!(node = opening.node_name(), %error, "a driver cannot be closed");
            }
            let why = format!("bitmaps in '{}': {error}", path.display());
            Err(OpenError::option("x-coblk-bitmaps", why))
        }
    }
}

impl<D: Driver> Factory for Typed<D> {
    fn read(&self, options: Deferred) -> Result<Arc<dyn AnyOptions>, Error> {
        Ok(Arc::new(options.take::<D::Options>()?))
    }

    fn takes(&self, options: &dyn AnyOptions) -> bool {
        options.as_any().is::<D::Options>()
    }

    fn schema(&self) -> Result<Schema, Error> {
        Schema::of::<D::Options>()
    }

    fn changeable(&self) -> &'static [&'static str] {
        D::CHANGEABLE
    }

    fn events(&self) -> &'static [EventType] {
        D::EVENTS
    }

    fn co_open(
        &self,
        opening: &Opening<'_, '_>,
        options: &dyn AnyOptions,
    ) -> Result<Arc<BlockNode>, OpenError> {
        Self::make(opening, D::co_open(opening, Self::options(options)?)?)
    }

    fn co_prepare_reopen<'a>(
        &self,
        driver: &'a dyn BlockDriver,
        reopening: &Reopening<'_, '_>,
        options: &dyn AnyOptions,
    ) -> Result<Box<dyn Reopen + 'a>, OpenError> {
        let driver = driver.wrapped().unwrap_or(driver);
        let driver = (driver as &dyn Any).downcast_ref::<D>();
        let driver = driver.ok_or_else(|| OpenError::broken("is not the node's driver"))?;
        driver.co_prepare_reopen(reopening, Self::options(options)?)
    }
}

/// The driver that options name, whose own options are left.
fn take_named<'a, T: ?Sized>(
    drivers: &'a BTreeMap<&'static str, Arc<T>>,
    options: &mut Map<String, Value>,
) -> Result<&'a T, Error> {
    let name = match options.remove(TAG) {
        None => return Err(Error::missing(TAG)),
        Some(Value::String(name)) => name,
        Some(_) => return Err(Error::invalid(TAG, "it is no string")),
    };
    let names = || drivers.keys().copied().collect::<Vec<_>>();
    let found = drivers.get(&*name).map(|driver| &**driver);
    found.ok_or_else(|| Error::not_accepted(TAG, &name, &names()))
}

/// The name of an option, such as `children.0`, as messages have it where the child was written so.
fn in_notation<'a>(option: &'a str, child: &OwnOptions) -> Cow<'a, str> {
    let is_json = matches!(child, OwnOptions::Written(own) if !own.is_keyval());
    match option.split_once('.').filter(|_| is_json) {
        Some((list, place)) => format!("{list}[{place}]").into(),
        None => option.into(),
    }
}

/// A set of drivers by their names, which a program can open.
///
/// [`drivers`](crate::drivers()) makes the set of this crate; a program adds its own.
///
/// ```
/// use coblk_block::{Drivers, drivers, drivers::Null};
///
/// let mut few = Drivers::new();
/// few.add::<Null>();
/// assert_eq!(few.names(), ["null-aio", "null-co"]);
/// assert!(drivers().names().contains(&"host_device"));
/// ```
#[derive(Clone, Default)]
pub struct Drivers {
    factories: BTreeMap<&'static str, Arc<dyn Factory>>,
    /// Those that make images.
    creators: BTreeMap<&'static str, Arc<dyn Creator>>,
    /// Those that say beforehand how long they will be.
    measurers: BTreeMap<&'static str, Arc<dyn Measurer>>,
    /// What file names of protocols mean.
    file_names: Vec<ReadFileName>,
}

/// What a file name means that begins with a protocol, such as `nbd://host/disk`; `None` if that is of another
/// driver.
pub type ReadFileName = fn(name: &str) -> Option<Result<DriverConfig, String>>;

impl fmt::Debug for Drivers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.factories.keys()).finish()
    }
}

impl Drivers {
    /// Makes an empty set.
    pub fn new() -> Drivers {
        Drivers::default()
    }

    /// Adds a driver.
    ///
    /// # Panics
    /// If a driver has one of its names already.
    pub fn add<D: Driver>(&mut self) {
        let factory: Arc<dyn Factory> = Arc::new(Typed::<D>(PhantomData));
        for name in D::NAMES {
            let previous = self.factories.insert(name, Arc::clone(&factory));
            assert!(previous.is_none(), "two drivers are called '{name}'");
        }
    }

    /// The names of all drivers, sorted.
    pub fn names(&self) -> Vec<&'static str> {
        self.factories.keys().copied().collect()
    }

    /// Adds the protocol of a driver: an image may name its backing file so.
    pub fn add_file_names(&mut self, read: ReadFileName) {
        self.file_names.push(read);
    }

    /// What a file name means that begins with a protocol; `None` if no driver has that.
    ///
    /// # Errors
    /// What is wrong with the name.
    pub fn file_name(&self, name: &str) -> Option<Result<NodeOptions, String>> {
        let read = self.file_names.iter().find_map(|read| read(name));
        read.map(|config| config.map(NodeOptions::new))
    }

    /// Adds a driver that makes images.
    ///
    /// # Panics
    /// If another one has its name already.
    pub fn add_creates<C: Creates>(&mut self) {
        let previous = self.creators.insert(C::NAME, Arc::new(creator::<C>()));
        assert!(previous.is_none(), "two drivers create '{}'", C::NAME);
    }

    /// Reads the options of an image that is to be created, those of `blockdev-create`: the member `driver`
    /// says which driver makes it, the others are that driver's.
    ///
    /// # Errors
    /// If no driver of this name creates images, and which parameter is wrong, in QEMU's words.
    pub fn creation(&self, mut options: Map<String, Value>) -> Result<Creation, Error> {
        if let Some(Value::String(name)) = options.get(TAG)
            && self.factories.contains_key(&**name)
            && !self.creators.contains_key(&**name)
        {
            return Err(Error::other(format!("Driver '{name}' does not support blockdev-create")));
        }
        let creator = take_named(&self.creators, &mut options)?;
        creator.read(Deferred::new(options))
    }

    /// Creates an image where there are no nodes that options could name; else
    /// [`Blockdevs::co_create`](crate::Blockdevs::co_create) does.
    ///
    /// # Errors
    /// As of [`creation`](Self::creation): nothing was touched then. If the driver fails.
    pub fn co_create(&self, co: &Co<'_>, options: Map<String, Value>) -> Result<(), CreateError> {
        let registry = Registry::new(self.clone());
        self.creation(options)?.co_run(&Creating::new(&registry, co))
    }

    /// The schema of the options of [`creation`](Self::creation).
    ///
    /// # Errors
    /// If a type of options cannot be described.
    pub fn create_schema(&self) -> Result<Schema, Error> {
        let variants =
            self.creators.iter().map(|(name, it)| Ok(((*name).to_owned(), it.schema()?)));
        let variants = variants.collect::<Result<Vec<_>, Error>>()?;
        Ok(Schema::object(&[]).with_variants(TAG, variants))
    }

    /// Adds a driver that measures images.
    ///
    /// # Panics
    /// If another one has its name already.
    pub fn add_measures<M: Measures>(&mut self) {
        let previous = self.measurers.insert(M::NAME, Arc::new(measurer::<M>()));
        assert!(previous.is_none(), "two drivers measure '{}'", M::NAME);
    }

    /// Says how many bytes an image would have, as `qemu-img measure` does: the member `driver` of `options`
    /// says of which driver, the others are that driver's. It is to have what `source` has, or to be empty.
    ///
    /// # Errors
    /// If no driver of this name measures images, and which parameter is wrong, in QEMU's words. If the
    /// driver fails.
    pub fn co_measure(
        &self,
        co: &Co<'_>,
        mut options: Map<String, Value>,
        source: Option<&BlockBackend>,
    ) -> Result<Measure, CreateError> {
        let measurer = take_named(&self.measurers, &mut options)?;
        measurer.co_measure(co, Deferred::new(options), source)
    }

    pub(crate) fn factory(&self, name: &str) -> Result<&dyn Factory, OptionsError> {
        let factory = self.factories.get(name).map(|factory| &**factory);
        factory.ok_or_else(|| Error::not_accepted(TAG, name, &self.names()))
    }

    /// Reads the options that belong to drivers, of a node and of all that it describes. Options
    /// that have been read before are checked. Nothing is opened.
    ///
    /// # Errors
    /// If there is no such driver, and which parameter is wrong; in QEMU's words. If descriptions nest
    /// deeper than nodes may.
    pub fn resolve(&self, mut options: NodeOptions) -> Result<NodeOptions, OptionsError> {
        self.read(&mut options, 0)?;
        Ok(options)
    }

    fn read(&self, options: &mut NodeOptions, depth: usize) -> Result<(), OptionsError> {
        if depth > MAX_HEIGHT {
            let node = options.node_name.as_deref().unwrap_or("(unnamed)");
            return Err(Error::other(GraphError::too_high(node)));
        }
        self.read_own(options)?;
        if let Some((name, list)) = options.driver.list()
            && list.len() > MAX_CHILDREN
        {
            return Err(Error::invalid(&name, format!("more than {MAX_CHILDREN} children")));
        }
        let mut result = Ok(());
        options.driver.visit_children(&mut |name, child| {
            if let (NodeRef::Options(child), Ok(())) = (child, &result) {
                let child = Arc::make_mut(child);
                let name = in_notation(name, &child.driver.own);
                result = self.read(child, depth + 1).map_err(|error| error.within(&name));
            }
        });
        result
    }

    /// Without its children.
    fn read_own(&self, options: &mut NodeOptions) -> Result<(), OptionsError> {
        let factory = self.factory(options.driver.name())?;
        match &mut options.driver.own {
            OwnOptions::Typed(own) if factory.takes(&**own) => Ok(()),
            OwnOptions::Typed(_) => {
                Err(Error::invalid(TAG, "the options are those of another driver"))
            }
            OwnOptions::Written(own) => {
                let own = factory.read(std::mem::take(own))?;
                options.driver.own = OwnOptions::Typed(own);
                Ok(())
            }
        }
    }

    /// The events that these drivers tell, by name, with what each tells.
    ///
    /// # Errors
    /// If the schema of one cannot be found by reading its type: what went wrong. If two drivers tell events
    /// of one name with other members.
    pub fn events(&self) -> Result<BTreeMap<&'static str, Schema>, Error> {
        let mut events = BTreeMap::new();
        for event in self.factories.values().flat_map(|factory| factory.events()) {
            let schema = event.schema()?;
            let known = events.entry(event.name()).or_insert_with(|| schema.clone());
            if *known != schema {
                let text =
                    format!("two drivers tell '{}', and not with the same data", event.name());
                return Err(Error::other(text));
            }
        }
        Ok(events)
    }

    /// The schema of `blockdev-add`: options of a node of any of these drivers.
    ///
    /// # Errors
    /// If the schema of a driver's options cannot be found by reading them: what went wrong.
    pub fn schema(&self) -> Result<Schema, Error> {
        let variants =
            self.factories.iter().map(|(name, it)| Ok(((*name).to_owned(), it.schema()?)));
        let variants = variants.collect::<Result<Vec<_>, Error>>()?;
        Ok(options::common_schema()?.with_variants(TAG, variants))
    }
}
