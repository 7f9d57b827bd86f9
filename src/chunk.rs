//! The buffers of a lane: memory that bytes are received into and sent from, without moving.
//!
//! Layer 0. A chunk is filled from its front; ranges of what is filled are lent to target connections until the
//! target has answered for them, so that they can be sent again. A chunk without lent ranges is used anew.
//!
//! ```text
//! chunk   [ framed and lent | framed, answered | not framed yet |        free        ]
//!         0                                                    filled              capacity
//! ```
//!
//! Ranges name their chunk by number instead of pointing at it. So the lane stays the single owner, plain
//! borrows check every access, and no reference count is touched by an atomic.

/// What a range is put together from.
#[derive(Debug, Clone, Copy)]
pub enum Piece<'a> {
    Bytes(&'a [u8]),
    Of(Range),
}

/// Names a chunk within its [`Chunks`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkId(u32);

/// A range of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    pub chunk: ChunkId,
    pub start: u32,
    pub end: u32,
}

impl Range {
    /// Length in bytes.
    pub fn len(&self) -> usize {
        (self.end - self.start) as usize
    }

    /// Whether it holds no byte.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }
}

#[derive(Debug, Default)]
struct Chunk {
    bytes: Vec<u8>,
    filled: usize,
    /// Ranges lent, plus one while the chunk is held by whoever fills it.
    holds: u32,
}

/// All chunks of a lane.
#[derive(Debug)]
pub struct Chunks {
    chunks: Vec<Chunk>,
    /// Chunks without memory, to be given some.
    empty: Vec<u32>,
    /// Chunks of the usual size without holds, ready to be filled.
    spare: Vec<u32>,
    usual_size: usize,
    spare_limit: usize,
    allocated: usize,
}

impl Chunks {
    /// Chunks of `usual_size` bytes; at most `spare_limit` of them are kept when unused.
    pub fn new(usual_size: usize, spare_limit: usize) -> Self {
        assert!(usual_size > 0 && u32::try_from(usual_size).is_ok());
        Self {
            chunks: Vec::new(),
            empty: Vec::new(),
            spare: Vec::new(),
            usual_size,
            spare_limit,
            allocated: 0,
        }
    }

    /// Memory in use and kept, in bytes.
    pub fn allocated(&self) -> usize {
        self.allocated
    }

    /// Memory of chunks that somebody holds, in bytes.
    pub fn in_use(&self) -> usize {
        self.allocated - self.spare.len() * self.usual_size
    }

    /// Whether a chunk of `size` bytes can be had without more memory.
    pub fn has_spare(&self, size: usize) -> bool {
        size <= self.usual_size && !self.spare.is_empty()
    }

    /// Takes a chunk to receive into, of at least `size` bytes (and at least the usual size), held by the caller.
    pub fn take(&mut self, size: usize) -> ChunkId {
        let id = self.take_empty(size);
        let chunk = &mut self.chunks[id.0 as usize];
        let capacity = chunk.bytes.capacity();
        chunk.bytes.resize(capacity, 0);
        id
    }

    /// Takes a chunk to [`append`](Self::append) to, held by the caller.
    pub fn take_empty(&mut self, size: usize) -> ChunkId {
        let spare = if size <= self.usual_size {
            self.spare.pop()
        } else {
            None
        };
        let index = spare.or_else(|| self.empty.pop()).unwrap_or_else(|| {
            self.chunks.push(Chunk::default());
            u32::try_from(self.chunks.len() - 1).expect("a lane holds far fewer chunks")
        });
        let chunk = &mut self.chunks[index as usize];
        debug_assert!(chunk.holds == 0);
        if chunk.bytes.capacity() == 0 {
            chunk.bytes.reserve_exact(size.max(self.usual_size));
            self.allocated += chunk.bytes.capacity();
        }
        chunk.filled = 0;
        chunk.holds = 1;
        ChunkId(index)
    }

    /// Adds a hold, so that the chunk's bytes stay as they are.
    pub fn hold(&mut self, id: ChunkId) {
        self.chunks[id.0 as usize].holds += 1;
    }

    /// Gives a hold back; the last one frees the chunk.
    pub fn release(&mut self, id: ChunkId) {
        let chunk = &mut self.chunks[id.0 as usize];
        chunk.holds = chunk
            .holds
            .checked_sub(1)
            .expect("a hold is given back once");
        if chunk.holds > 0 {
            return;
        }
        if chunk.bytes.capacity() == self.usual_size && self.spare.len() < self.spare_limit {
            self.spare.push(id.0);
        } else {
            self.allocated -= chunk.bytes.capacity();
            chunk.bytes = Vec::new();
            self.empty.push(id.0);
        }
    }

    /// How many bytes of the chunk are filled.
    pub fn filled(&self, id: ChunkId) -> usize {
        self.chunks[id.0 as usize].filled
    }

    /// The free space after what is filled.
    pub fn free(&mut self, id: ChunkId) -> &mut [u8] {
        let chunk = &mut self.chunks[id.0 as usize];
        &mut chunk.bytes[chunk.filled..]
    }

    /// Counts `bytes` of the free space as filled.
    pub fn fill(&mut self, id: ChunkId, bytes: usize) {
        let chunk = &mut self.chunks[id.0 as usize];
        assert!(chunk.filled + bytes <= chunk.bytes.len());
        chunk.filled += bytes;
    }

    /// Starts filling at the front again, when nobody but the caller holds the chunk; gives whether it did.
    pub fn rewind(&mut self, id: ChunkId) -> bool {
        let chunk = &mut self.chunks[id.0 as usize];
        if chunk.holds == 1 {
            chunk.filled = 0;
            true
        } else {
            false
        }
    }

    /// Copies the filled bytes of `from` starting at `start` to the end of what is filled in `to`.
    pub fn carry(&mut self, from: ChunkId, start: usize, to: ChunkId) {
        assert!(from != to);
        let tail = {
            let chunk = &self.chunks[from.0 as usize];
            start..chunk.filled
        };
        let [source, target] = self
            .chunks
            .get_disjoint_mut([from.0 as usize, to.0 as usize])
            .expect("two chunks that exist");
        let at = target.filled;
        target.bytes[at..at + tail.len()].copy_from_slice(&source.bytes[tail.clone()]);
        target.filled += tail.len();
    }

    /// Everything filled in a chunk.
    pub fn bytes(&self, id: ChunkId) -> &[u8] {
        let chunk = &self.chunks[id.0 as usize];
        &chunk.bytes[..chunk.filled]
    }

    /// The bytes of a range.
    pub fn get(&self, range: Range) -> &[u8] {
        &self.chunks[range.chunk.0 as usize].bytes[range.start as usize..range.end as usize]
    }

    /// The bytes of a range, to be changed by whoever knows that nobody has sent them.
    pub fn get_mut(&mut self, range: Range) -> &mut [u8] {
        &mut self.chunks[range.chunk.0 as usize].bytes[range.start as usize..range.end as usize]
    }

    /// The chunk's memory in bytes.
    pub fn size(&self, id: ChunkId) -> usize {
        self.chunks[id.0 as usize].bytes.capacity()
    }

    /// Whether the chunk is larger than usual, and so should be given back after use.
    pub fn is_oversized(&self, id: ChunkId) -> bool {
        self.chunks[id.0 as usize].bytes.capacity() > self.usual_size
    }

    /// Whether nobody but the caller holds the chunk.
    pub fn is_sole(&self, id: ChunkId) -> bool {
        self.chunks[id.0 as usize].holds == 1
    }

    /// Lets `write` append to the end of what is filled, growing the chunk if it must; gives the new bytes' range,
    /// with one hold on it. For commands that are built here instead of received.
    pub fn append<R>(&mut self, id: ChunkId, write: impl FnOnce(&mut Vec<u8>) -> R) -> (Range, R) {
        let chunk = &mut self.chunks[id.0 as usize];
        let before = chunk.bytes.capacity();
        let start = chunk.filled;
        // As a vector the chunk ends where it is filled; the rest of its memory is spare capacity meanwhile.
        chunk.bytes.truncate(start);
        let result = write(&mut chunk.bytes);
        assert!(chunk.bytes.len() >= start, "appending only");
        chunk.filled = chunk.bytes.len();
        chunk.holds += 1;
        let range = Range {
            chunk: id,
            start: start as u32,
            end: u32::try_from(chunk.filled).expect("a chunk stays under 4 GiB"),
        };
        self.allocated = self.allocated - before + chunk.bytes.capacity();
        (range, result)
    }

    /// Appends copies of `pieces`, which may be of the same chunk; see [`append`](Self::append).
    pub fn assemble<'a>(
        &mut self,
        id: ChunkId,
        pieces: impl Iterator<Item = Piece<'a>> + Clone,
    ) -> Range {
        let length = |piece| match piece {
            Piece::Bytes(bytes) => bytes.len(),
            Piece::Of(range) => range.len(),
        };
        let total: usize = pieces.clone().map(length).sum();
        let chunk = &mut self.chunks[id.0 as usize];
        let filled = chunk.filled;
        // Taken out meanwhile, since the pieces are read from its neighbours.
        let mut bytes = std::mem::take(&mut chunk.bytes);
        let before = bytes.capacity();
        bytes.truncate(filled);
        bytes.reserve_exact(total);
        for piece in pieces {
            match piece {
                Piece::Bytes(part) => bytes.extend_from_slice(part),
                Piece::Of(range) if range.chunk == id => {
                    bytes.extend_from_within(range.start as usize..range.end as usize);
                }
                Piece::Of(range) => bytes.extend_from_slice(self.get(range)),
            }
        }
        self.allocated = self.allocated - before + bytes.capacity();
        let chunk = &mut self.chunks[id.0 as usize];
        chunk.filled = bytes.len();
        chunk.bytes = bytes;
        chunk.holds += 1;
        Range {
            chunk: id,
            start: filled as u32,
            end: u32::try_from(filled + total).expect("a chunk stays under 4 GiB"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_used_anew_only_when_nothing_of_it_is_lent() {
        let mut chunks = Chunks::new(16, 1);
        let first = chunks.take(1);
        chunks.free(first)[..3].copy_from_slice(b"abc");
        chunks.fill(first, 3);
        chunks.hold(first);
        assert!(!chunks.rewind(first));
        chunks.release(first);
        assert!(chunks.rewind(first));
        chunks.release(first);
        assert_eq!(chunks.take(16), first);
        assert_eq!(chunks.allocated(), 16);
    }

    #[test]
    fn a_large_chunk_is_given_back_when_released() {
        let mut chunks = Chunks::new(16, 4);
        let large = chunks.take(1000);
        assert_eq!(chunks.allocated(), 1000);
        chunks.release(large);
        assert_eq!(chunks.allocated(), 0);
    }

    #[test]
    fn carried_bytes_arrive_at_the_front() {
        let mut chunks = Chunks::new(8, 4);
        let from = chunks.take(8);
        chunks.free(from)[..6].copy_from_slice(b"donepa");
        chunks.fill(from, 6);
        let to = chunks.take(8);
        chunks.carry(from, 4, to);
        assert_eq!(chunks.bytes(to), b"pa");
    }

    #[test]
    fn appended_bytes_keep_their_place_when_the_chunk_grows() {
        let mut chunks = Chunks::new(8, 4);
        let id = chunks.take_empty(1);
        let (a, ()) = chunks.append(id, |out| out.extend_from_slice(b"12345"));
        let (b, ()) = chunks.append(id, |out| out.extend_from_slice(&[b'x'; 100]));
        assert_eq!(chunks.get(a), b"12345");
        assert_eq!(b.len(), 100);
        assert!(chunks.allocated() >= 105);
        chunks.release(a.chunk);
        chunks.release(b.chunk);
        assert!(chunks.is_sole(id));
        chunks.release(id);
        assert_eq!(chunks.allocated(), 0, "a grown chunk is not kept");
    }

    #[test]
    fn a_range_is_put_together_from_pieces_of_any_chunk() {
        let mut chunks = Chunks::new(8, 4);
        let (one, other) = (chunks.take_empty(1), chunks.take_empty(1));
        let (a, ()) = chunks.append(one, |out| out.extend_from_slice(b"1234"));
        let (b, ()) = chunks.append(other, |out| out.extend_from_slice(b"abcd"));
        let pieces = [
            Piece::Bytes(b"<"),
            Piece::Of(b),
            Piece::Of(a),
            Piece::Bytes(b">"),
        ];
        let whole = chunks.assemble(one, pieces.into_iter());
        assert_eq!(chunks.get(whole), b"<abcd1234>");
        assert_eq!(chunks.get(a), b"1234");
        assert_eq!(chunks.filled(one), 14);
        assert!(chunks.allocated() >= 14 + 8);
        for range in [a, b, whole] {
            chunks.release(range.chunk);
        }
        assert!(chunks.is_sole(one) && chunks.is_sole(other));
    }

    #[test]
    fn a_chunk_that_was_appended_to_can_be_received_into() {
        let mut chunks = Chunks::new(8, 4);
        let id = chunks.take_empty(1);
        let (range, ()) = chunks.append(id, |out| out.extend_from_slice(b"abc"));
        chunks.release(range.chunk);
        chunks.release(id);
        let again = chunks.take(8);
        assert_eq!(again, id);
        assert_eq!(chunks.free(again).len(), 8);
    }
}
