// Package serve gives the points of a repository as flat raw disks over HTTP, read-only, to whatever can read a disk from
// a web server: curl, QEMU, nbdkit, the import of librbd.
//
//	/                               a page that lists images and points
//	/index.json                     the same for programs
//	/FOLDER/FOLDER@POINT.raw        a disk, by the path of the point's file in the repository
//	/IMAGE/POINT.raw                a disk, by the name of its image
//	/IMAGE/latest.raw               the newest disk of an image, for those who read it from end to end
//
// With a token all paths begin with it, and all others lead to nothing. It stands in the path since librbd sends neither
// query strings nor headers.
//
// What is read is proved by the digests of the points. Where that fails in the middle of an answer, the connection is
// cut: an answer that ends as announced is right.
package serve
