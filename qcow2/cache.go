package qcow2

import (
	"container/list"
	"fmt"
	"reflect"
	"runtime"
	"sync"
)

// The memory that the files of a chain share while they are read. With 400 files in a chain each needs a slice of
// its L1 and one of its L2 table at a time.
const (
	tableCacheBytes   = 8 << 20
	clusterCacheBytes = 16 << 20
	digestCacheBytes  = 64 << 20 // as if all clusters had digests; of increments few do
	indexCacheBytes   = 4 << 20
)

// shared is what the files of a chain have in common, so that memory does not grow with the length of the chain.
type shared struct {
	tables   cache[tableKey, []byte]
	clusters cache[clusterKey, []byte]
	// Of files whose reads are proved:
	digests   cache[blockKey, *digestBlock]
	directory cache[tableKey, []byte] // by offsets in the directory

	mu       sync.Mutex
	inflater map[Codec]chan *inflater // idle ones
}

type tableKey struct {
	file   *Image
	offset int64 // of a slice in the file
}

type clusterKey struct {
	file  *Image
	entry uint64 // the L2 entry of a compressed cluster, the offset in the file of another
}

type blockKey struct {
	file  *Image
	index int64 // in the L1 table
}

func newShared() *shared {
	return &shared{
		tables:    cache[tableKey, []byte]{budget: tableCacheBytes},
		clusters:  cache[clusterKey, []byte]{budget: clusterCacheBytes},
		digests:   cache[blockKey, *digestBlock]{budget: digestCacheBytes},
		directory: cache[tableKey, []byte]{budget: indexCacheBytes},
		inflater:  make(map[Codec]chan *inflater),
	}
}

// inflater is a decoder with the buffer for what it decodes.
type inflater struct {
	Decoder
	src []byte
}

// idle gives the free list of a codec. It bounds what is kept, not how many work at a time: callers do that.
func (s *shared) idle(c Codec) (chan *inflater, error) {
	if !reflect.TypeOf(c).Comparable() {
		return nil, fmt.Errorf("codec %T: not comparable", c)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inflater[c] == nil {
		s.inflater[c] = make(chan *inflater, runtime.GOMAXPROCS(0))
	}
	return s.inflater[c], nil
}

// cache holds the values last used, up to a budget. Values are loaded once, however many ask for them at the same
// time, and are not to be changed.
type cache[K comparable, V any] struct {
	budget int64 // bytes

	mu      sync.Mutex
	used    int64
	entries map[K]*list.Element // of *cached[K, V]
	recent  list.List           // the last used in front
}

type cached[K comparable, V any] struct {
	key   K
	cost  int64
	ready chan struct{} // closed once value and err are set
	value V
	err   error
}

// get gives the value of key, which takes cost bytes and comes from load where it is not there yet. Errors are not kept.
func (c *cache[K, V]) get(key K, cost int64, load func() (V, error)) (V, error) {
	c.mu.Lock()
	if e, ok := c.entries[key]; ok {
		c.recent.MoveToFront(e)
		c.mu.Unlock()
		v := e.Value.(*cached[K, V])
		<-v.ready
		return v.value, v.err
	}
	v := &cached[K, V]{key: key, cost: cost, ready: make(chan struct{})}
	e := c.add(v)
	c.mu.Unlock()

	v.value, v.err = load()
	close(v.ready)
	if v.err != nil {
		c.mu.Lock()
		c.remove(e)
		c.mu.Unlock()
	}
	return v.value, v.err
}

// add makes room for v and puts it in front. Whoever waits for a value that has to go still gets it.
func (c *cache[K, V]) add(v *cached[K, V]) *list.Element {
	for c.used+v.cost > c.budget && c.recent.Len() > 0 {
		c.remove(c.recent.Back())
	}
	if c.entries == nil {
		c.entries = make(map[K]*list.Element)
	}
	e := c.recent.PushFront(v)
	c.entries[v.key] = e
	c.used += v.cost
	return e
}

func (c *cache[K, V]) remove(e *list.Element) {
	v := e.Value.(*cached[K, V])
	if c.entries[v.key] != e { // removed already
		return
	}
	delete(c.entries, v.key)
	c.recent.Remove(e)
	c.used -= v.cost
}
