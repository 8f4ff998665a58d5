"""Small questions on maps of tokens, one for each thing that attention to video is for: what can a scheme see?"""
