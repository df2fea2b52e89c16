"""What a labelled volume looks like: sections, surfaces, meshes, films, a viewer."""
