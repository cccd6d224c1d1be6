package qcow2

// Codec compresses and decompresses guest clusters. It is a property of a file; whether a cluster is stored
// compressed is a property of the cluster. A Codec is used by many goroutines, what it makes by one at a time.
type Codec interface {
	Type() CompressionType
	NewEncoder() (Encoder, error)
	NewDecoder() (Decoder, error)
}

// Encoder compresses one cluster at a time.
type Encoder interface {
	// Encode compresses src into dst and gives the number of bytes, or 0 where they do not fit into len(dst).
	Encode(dst, src []byte) (int, error)
}

// Decoder decompresses one cluster at a time.
type Decoder interface {
	// Decode fills dst from src, which goes on after the compressed data with up to a sector of foreign bytes, and gives
	// how many bytes of src are compressed data, at the most. Less output than len(dst) is an error.
	Decode(dst, src []byte) (int, error)
}
