// Prints what Go's archive/tar says of every archive in a directory, as JSON: name → an error, or
// its entries. How to record it anew:
//
//	python tests/compat/write_hostile_archives.py DIR
//	go run tests/compat/go_verdicts.go DIR > tests/compat/go_verdicts.json
package main

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"sort"
)

type entry struct {
	Name   string            `json:"name"`
	Link   string            `json:"link,omitempty"`
	Type   string            `json:"type"`
	Size   int64             `json:"size,omitempty"`
	Mode   int64             `json:"mode"`
	Uid    int               `json:"uid,omitempty"`
	Gid    int               `json:"gid,omitempty"`
	Mtime  [2]int64          `json:"mtime"`
	Device [2]int64          `json:"device"`
	Xattrs map[string]string `json:"xattrs,omitempty"`
}

type verdict struct {
	Refused string  `json:"refused,omitempty"`
	Entries []entry `json:"entries,omitempty"`
}

// Hex, since names need not be UTF-8; the hash of what is long.
func shown(text string) string {
	if len(text) > 100 {
		return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(text)))
	}
	return fmt.Sprintf("%x", text)
}

func read(path string) (v verdict) {
	file, err := os.Open(path)
	if err != nil {
		log.Fatal(err)
	}
	defer file.Close()
	// Not seekable, as in every container tool: else a truncated content may go unseen.
	reader := tar.NewReader(struct{ io.Reader }{file})
	for {
		header, err := reader.Next()
		if err == io.EOF {
			return v
		}
		if err == nil && header.Typeflag != tar.TypeXGlobalHeader && header.Size < 1<<40 {
			_, err = io.Copy(io.Discard, reader)
		}
		if err != nil {
			return verdict{Refused: err.Error()}
		}
		if header.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		xattrs := map[string]string{}
		if len(header.Xattrs) < 100 {
			for name, value := range header.Xattrs {
				xattrs[shown(name)] = shown(value)
			}
		}
		mtime := header.ModTime
		v.Entries = append(v.Entries, entry{
			shown(header.Name), shown(header.Linkname), string([]rune{rune(header.Typeflag)}),
			header.Size, header.Mode, header.Uid, header.Gid,
			[2]int64{mtime.Unix(), int64(mtime.Nanosecond())},
			[2]int64{header.Devmajor, header.Devminor}, xattrs,
		})
	}
}

func main() {
	paths, err := filepath.Glob(filepath.Join(os.Args[1], "*"))
	if err != nil {
		log.Fatal(err)
	}
	sort.Strings(paths)
	for i, path := range paths {
		line, err := json.Marshal(read(path))
		if err != nil {
			log.Fatal(err)
		}
		start := map[bool]string{true: "{", false: ","}[i == 0]
		fmt.Printf("%s%q: %s\n", start, filepath.Base(path), line)
	}
	fmt.Println("}")
}
