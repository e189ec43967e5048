#!/usr/bin/env bash
# repository.sh FOLDER: build the stand-in packages and repositories in FOLDER and serve them on port 8080; see README.md.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$1
# 1.17.8 is there for updates and for versions that are named.
versions=(1.17.8 1.19.1)
packages=(libnvidia-container1 libnvidia-container-tools nvidia-container-toolkit-base nvidia-container-toolkit)
declare -A depends=(
  [libnvidia-container-tools]=libnvidia-container1
  [nvidia-container-toolkit]=nvidia-container-toolkit-base
)
mkdir -p "$folder/packages"
work=$(mktemp -d)
export GNUPGHOME=$work/gnupg
mkdir -m 700 "$GNUPGHOME"

# files_of PACKAGE VERSION: put the files of a package into $work/files
files_of() {
  rm -rf "$work/files"
  mkdir -p "$work/files/usr/share/doc/$1"
  echo "A stand-in for tests." >"$work/files/usr/share/doc/$1/README"
  case $1 in
    nvidia-container-toolkit-base) programs_of "$2" nvidia-ctk nvidia-container-runtime ;;
    nvidia-container-toolkit) programs_of "$2" nvidia-container-runtime-hook ;;
  esac
}

# programs_of VERSION PROGRAM...: put programs among them
programs_of() {
  local version=$1 program bin=$work/files/usr/bin
  shift
  mkdir -p "$bin"
  for program in "$@"; do
    { echo '#!/usr/bin/python3' && sed "s/@VERSION@/$version/" "$here/$program"; } >"$bin/$program"
    chmod 755 "$bin/$program"
  done
}

build_deb() {
  local package=$1 version=$2 needs=${depends[$1]:-}
  needs=${needs:+$needs (>= $version-1)}
  # The newer version depends on a package of the distribution, as the real toolkit does on libc6.
  if [ "$package-$version" = nvidia-container-toolkit-base-1.19.1 ]; then needs=hello; fi
  mkdir -p "$work/files/DEBIAN"
  {
    echo "Package: $package"
    echo "Version: $version-1"
    echo "Architecture: $(dpkg --print-architecture)"
    echo "Maintainer: gpufleet contributors <tests@example.com>"
    [ -z "$needs" ] || echo "Depends: $needs"
    echo "Description: stand-in for tests"
  } >"$work/files/DEBIAN/control"
  dpkg-deb --root-owner-group -Znone --build "$work/files" "$folder/packages" >/dev/null
  rm -r "$work/files/DEBIAN"
}

build_rpm() {
  local package=$1 version=$2 needs=${depends[$1]:-}
  {
    echo "Name: $package"
    echo "Version: $version"
    echo "Release: 1"
    echo "Summary: stand-in for tests"
    echo "License: GPL-3.0-or-later"
    echo "AutoReqProv: no" # Debian's interpreter is not a package that rpm knows
    [ -z "$needs" ] || echo "Requires: $needs >= $version"
    printf '%s\n' '%description' 'A stand-in for tests.' '%install' "cp -a $work/files/. %{buildroot}/" '%files'
    (cd "$work/files" && find . -type f | sed 's/^\.//')
  } >"$work/$package.spec"
  rpmbuild --quiet -bb --define "_topdir $work/rpm" --define "_rpmdir $folder/packages" --define '__os_install_post %{nil}' \
    --define '_rpmfilename %%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm' --define '_binary_payload w.ufdio' \
    "$work/$package.spec"
}

# make_key NAME [EXPIRY [FAKED TIME]]: make a key, write NAME.asc, print its fingerprint
make_key() {
  local faked=()
  [ $# -lt 3 ] || faked=(--faked-system-time "$3")
  gpg --batch --quiet "${faked[@]}" --passphrase '' --quick-generate-key "$1 <$1@example.com>" rsa2048 sign "${2:-0}" 2>/dev/null
  gpg --armor --export "$1@example.com" >"$work/$1.asc"
  gpg --with-colons --list-keys "$1@example.com" 2>/dev/null | awk -F: '$1 == "fpr" && !seen++ { print $10 }'
}

# sign_repositories FOLDER KEY [FAKED TIME]
sign_repositories() {
  local faked=()
  [ $# -lt 3 ] || faked=(--faked-system-time "$3")
  local deb rpm sign=(gpg --batch --quiet "${faked[@]}" --local-user "$2@example.com" --yes)
  deb=$1/stable/deb/$(dpkg --print-architecture)
  rpm=$1/stable/rpm/$(uname -m)
  mkdir -p "$deb" "$rpm"
  cp "$folder"/packages/*.deb "$deb"
  cp "$folder"/packages/*.rpm "$rpm"
  (cd "$deb" && apt-ftparchive packages . >Packages && apt-ftparchive release . >"$work/Release" && mv "$work/Release" .)
  "${sign[@]}" --clearsign --output "$deb/InRelease" "$deb/Release" 2>/dev/null
  createrepo_c --quiet "$rpm"
  "${sign[@]}" --armor --detach-sign --output "$rpm/repodata/repomd.xml.asc" "$rpm/repodata/repomd.xml" 2>/dev/null
}

for version in "${versions[@]}"; do
  for package in "${packages[@]}"; do
    files_of "$package" "$version"
    build_deb "$package" "$version"
    build_rpm "$package" "$version"
  done
done

past=20230101T000000!
good=$(make_key good)
other=$(make_key other)
expired=$(make_key expired 1y "$past")
sign_repositories "$folder/good" good
sign_repositories "$folder/other" other
sign_repositories "$folder/expired" expired "$past"
cp "$work/good.asc" "$folder/good/gpgkey"
cp "$work/good.asc" "$folder/other/gpgkey"
cp "$work/expired.asc" "$folder/expired/gpgkey"
cp "$work/other.asc" "$folder/other.asc"
mkdir "$folder/files"
cp "$folder/packages/"*[-_]1.19.1-1* "$folder/files"
printf '{"good": "%s", "other": "%s", "expired": "%s"}\n' "$good" "$other" "$expired" >"$folder/fingerprints.json"
rm -rf "$work"
exec python3 -m http.server 8080 --directory "$folder"
