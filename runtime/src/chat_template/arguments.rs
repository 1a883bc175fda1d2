//! Arguments of Python's functions: given by place or by name.

use minijinja::value::{Kwargs, Rest};
use minijinja::{Error, ErrorKind, Value};

/// Positional and named arguments.
pub(super) struct Arguments {
    pub(super) positional: Vec<Value>,
    named: Option<Kwargs>,
}

impl Arguments {
    /// From a filter's arguments, which the engine has sorted.
    pub(super) fn of_filter(positional: Rest<Value>, named: Kwargs) -> Arguments {
        Arguments { positional: positional.0, named: Some(named) }
    }

    /// From a method's arguments: those by name are the last value.
    pub(super) fn new(args: &[Value]) -> Result<Arguments, Error> {
        let mut positional = args.to_vec();
        let named = match positional.last() {
            Some(last) if last.is_kwargs() => positional.pop().map(Kwargs::try_from).transpose()?,
            _ => None,
        };
        Ok(Arguments { positional, named })
    }

    /// The argument at `index` or with `name`; None if it is absent or Python's None.
    pub(super) fn get(&self, index: usize, name: &str) -> Result<Option<Value>, Error> {
        Ok(self.given(index, name)?.filter(|value| !value.is_none() && !value.is_undefined()))
    }

    /// The argument at `index` or with `name`, whatever it is.
    pub(super) fn given(&self, index: usize, name: &str) -> Result<Option<Value>, Error> {
        let named =
            self.named.as_ref().filter(|named| named.has(name)).map(|named| named.get::<Value>(name)).transpose()?;
        Ok(self.positional.get(index).cloned().or(named))
    }

    /// Fails on more than `most` arguments by place, or a name that was not asked for.
    pub(super) fn all_used(&self, most: usize) -> Result<(), Error> {
        if self.positional.len() > most {
            return Err(Error::from(ErrorKind::TooManyArguments));
        }
        self.named.as_ref().map_or(Ok(()), Kwargs::assert_all_used)
    }

    pub(super) fn text(&self, index: usize, name: &str) -> Result<Option<String>, Error> {
        let value = self.get(index, name)?;
        value
            .map(|value| value.as_str().map(str::to_owned).ok_or_else(|| invalid(&format!("{name} is not a text"))))
            .transpose()
    }

    pub(super) fn needed(&self, index: usize, name: &str) -> Result<String, Error> {
        self.text(index, name)?.ok_or_else(|| Error::new(ErrorKind::MissingArgument, name.to_owned()))
    }

    pub(super) fn integer(&self, index: usize, name: &str) -> Result<Option<i64>, Error> {
        let value = self.get(index, name)?;
        value.map(|value| value.as_i64().ok_or_else(|| invalid(&format!("{name} is not an integer")))).transpose()
    }
}

/// An error in the engine's words for a wrong operation.
pub(super) fn invalid(problem: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, problem.to_owned())
}
