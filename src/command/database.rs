//! Commands in which numbers of databases stand.
//!
//! A stream names its database with `SELECT` and says nothing else about it, so it is part of a position. `SWAPDB`, `MOVE`
//! and `COPY ... DB` reach a second one.

use super::keys::{decimal, is_word};
use crate::resp::Frame;

/// A command whose database cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{command} does not name a database by its number")]
pub struct DatabaseError {
    command: String,
}

/// The database that `SELECT n` chooses.
///
/// # Errors
/// When there is no number.
pub fn database_of_select(frame: &Frame<'_>) -> Result<u32, DatabaseError> {
    number(frame, 1)
}

/// The two databases that `SWAPDB a b` exchanges.
///
/// # Errors
/// When there are not two numbers.
pub fn databases_of_swap(frame: &Frame<'_>) -> Result<(u32, u32), DatabaseError> {
    Ok((number(frame, 1)?, number(frame, 2)?))
}

/// The database that `MOVE key n` moves the key to.
///
/// # Errors
/// When there is no number.
pub fn database_of_move(frame: &Frame<'_>) -> Result<u32, DatabaseError> {
    number(frame, 2)
}

/// The database that `COPY a b [DB n] [REPLACE]` copies to; `None` when it is the selected one.
///
/// # Errors
/// When the option has no number.
pub fn database_of_copy(frame: &Frame<'_>) -> Result<Option<u32>, DatabaseError> {
    // As servers read it, the last of several counts.
    let mut database = None;
    let mut at = 3;
    while let Some(arg) = frame.arg(at) {
        if is_word(arg, "db") {
            database = Some(number(frame, at + 1)?);
            at += 1;
        }
        at += 1;
    }
    Ok(database)
}

fn number(frame: &Frame<'_>, at: usize) -> Result<u32, DatabaseError> {
    frame
        .arg(at)
        .and_then(decimal)
        .and_then(|number| u32::try_from(number).ok())
        .ok_or_else(|| DatabaseError {
            command: super::describe(frame),
        })
}

#[cfg(test)]
mod tests {
    use super::super::testing::with_frame;
    use super::*;

    #[test]
    fn databases_are_read_from_every_command_that_names_one() {
        assert_eq!(with_frame("sELECT 15", database_of_select), Ok(15));
        assert_eq!(with_frame("SWAPDB 0 3", databases_of_swap), Ok((0, 3)));
        assert_eq!(with_frame("MOVE k 7", database_of_move), Ok(7));
        assert_eq!(with_frame("COPY a db", database_of_copy), Ok(None));
        assert_eq!(with_frame("COPY a b", database_of_copy), Ok(None));
        assert_eq!(
            with_frame("COPY a b REPLACE dB 2", database_of_copy),
            Ok(Some(2))
        );
    }

    #[test]
    fn what_is_no_number_is_an_error_that_names_the_command() {
        for line in [
            "SELECT",
            "SELECT x",
            "SELECT -1",
            "SELECT 4294967296",
            "SELECT ",
        ] {
            let error = with_frame(line, database_of_select).unwrap_err();
            assert!(error.to_string().starts_with("SELECT ("), "{error}");
        }
        assert!(with_frame("SWAPDB 1", databases_of_swap).is_err());
        assert!(with_frame("COPY a b DB", database_of_copy).is_err());
    }
}
